"""Chat formats: what is trained is what the assistant says, and serving renders the same."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from easyllm.components import shipped
from easyllm.data.chat.formats import Baichuan, ChatML, Llama2
from easyllm.data.chat.templates import Plain, TokenizerTemplate
from easyllm.data.tokenizers.encode import load_tokenizer
from easyllm.errors import BadRecord, UserError
from easyllm.smoke import shrink
from easyllm.spec.roles import Template
from tests.data.chat.test_templates import runs
from tests.data.conftest import Spec, work
from tests.support import LLAMA

LLAMA_FAMILY = "easyllm.models.families.Llama"

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
MARKED = st.sampled_from(
    ["<|im_end|>", "<|endoftext|> x", "<|user|>", "\n\n", " a", "你好 \U0001f600"]
)
SAID = WORDS | MARKED

FORMATS = [Plain(), ChatML(), Llama2(), Baichuan(user_token=1, assistant_token=2)]
ALL = [*FORMATS, TokenizerTemplate()]

PLAIN_WORDS = st.text("abc é你😀,.\n ", min_size=1, max_size=20).map(lambda words: f"x{words}x")
"""Without names of special tokens, which a rendered text takes for the tokens."""


@pytest.fixture(scope="module")
def tokenizer(store: Path) -> Any:
    """The store's byte-level vocabulary, with the tokens of ChatML."""
    loaded = copy.deepcopy(load_tokenizer(store / "store/tokenizer"))
    loaded.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return loaded


def answer(template: Template, tokenizer: Any, said: str) -> str:
    """An assistant's turn as it stands among the trained tokens."""
    eos = tokenizer.eos_token
    if isinstance(template, Plain):
        return f" {said}{eos}"
    if isinstance(template, Llama2):
        return f" {said.strip()} {eos}"
    return said + ("<|im_end|>" if isinstance(template, ChatML) else eos)


@pytest.mark.parametrize("template", FORMATS, ids=lambda t: type(t).__name__)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.none() | SAID, st.lists(st.tuples(SAID, SAID), min_size=1, max_size=4))
def test_trained_are_the_answers_and_the_prompt_is_a_prefix(
    template: Template, tokenizer: Any, system: str | None, pairs: list[tuple[str, str]]
) -> None:
    turns = [] if system is None else [{"role": "system", "content": system}]
    ends = []
    for asked, said in pairs:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        ends.append(len(turns))
    ((ids, trained, _),) = template.encode(tokenizer, turns)
    expected = [answer(template, tokenizer, said) for _, said in pairs]
    assert runs(tokenizer, ids, trained) == expected
    for end in ends:
        prompt = template.prompt(tokenizer, turns[: end - 1])
        assert ids[: len(prompt)] == prompt
        assert trained[len(prompt)] and not trained[len(prompt) - 1]


def test_all_shipped_templates_are_tried_here() -> None:
    assert {type(template) for template in ALL} == set(shipped(Template))


@pytest.mark.parametrize("template", [Plain(), ChatML(), TokenizerTemplate()],
                         ids=lambda t: type(t).__name__)  # fmt: skip
@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["user", "tool", "system", "assistant"]), PLAIN_WORDS), max_size=8
    )
)
def test_whoever_speaks_only_the_assistant_is_trained(
    template: Template, tokenizer: Any, said: list[tuple[str, str]]
) -> None:
    """Speakers in any order: tools and systems between, answers that follow one another."""
    turns = [{"role": role, "content": words} for role, words in [("user", "Go"), *said]]
    documents = template.encode(tokenizer, turns)
    if not any(role == "assistant" for role, _ in said):
        assert documents == []
        return
    ((ids, trained, _),) = documents
    expected = [answer(template, tokenizer, words) for role, words in said if role == "assistant"]
    found = runs(tokenizer, ids, trained)
    assert "".join(found) == "".join(expected)
    asked = sum(role == "assistant" for role, _ in said)
    ends = [template.stop_tokens(tokenizer) == [i] for i, t in zip(ids, trained, strict=True) if t]
    assert sum(ends) == asked, "each answer has its end of turn"
    text = tokenizer.decode(ids)
    last = max((place for place, (role, _) in enumerate(said) if role == "assistant"), default=-1)
    heard = said if isinstance(template, ChatML) else said[: last + 1]  # the rest teaches nothing
    assert all(words.strip() in text for _, words in heard), "nothing is left out"


TALK = [
    {"role": "system", "content": "Be kind"},
    {"role": "user", "content": "What is 2\U0001f600?"},
    {"role": "assistant", "content": "It is two"},
    {"role": "user", "content": "and then"},
    {"role": "assistant", "content": "three"},
]


@pytest.mark.parametrize("template", FORMATS, ids=lambda t: type(t).__name__)
def test_the_chat_template_renders_the_same(template: Template, tokenizer: Any) -> None:
    carrier = copy.deepcopy(tokenizer)
    carrier.chat_template = template.chat_template(tokenizer)
    ((ids, trained, _),) = template.encode(tokenizer, TALK)
    assert carrier.apply_chat_template(TALK, tokenize=True)["input_ids"] == ids
    asked = carrier.apply_chat_template(TALK[:-1], tokenize=True, add_generation_prompt=True)
    assert asked["input_ids"] == template.prompt(tokenizer, TALK[:-1])
    if not isinstance(template, Plain | Llama2):
        (again,) = TokenizerTemplate().encode(carrier, TALK)
        assert again[:2] == (ids, trained)


def test_tool_turns_are_said_but_not_trained(tokenizer: Any) -> None:
    talk = [*TALK[:2], {"role": "tool", "content": "4"}, TALK[2]]
    for template in (Plain(), ChatML()):
        ((ids, trained, _),) = template.encode(tokenizer, talk)
        assert runs(tokenizer, ids, trained) == [answer(template, tokenizer, "It is two")]
        assert "4" in tokenizer.decode(ids)
    for template in (Llama2(), Baichuan(user_token=1, assistant_token=2)):
        with pytest.raises(BadRecord):
            template.encode(tokenizer, talk)
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    for template in FORMATS:
        with pytest.raises(BadRecord, match=r"calls tools.*TokenizerTemplate"):
            template.encode(tokenizer, [TALK[1], call])


def test_what_a_vocabulary_lacks_is_said(tokenizer: Any, store: Path) -> None:
    own = copy.deepcopy(load_tokenizer(store / "store/tokenizer"))
    with pytest.raises(UserError, match=r"no token <\|im_start\|>.*templates\.Plain"):
        ChatML().encode(own, TALK)
    with pytest.raises(UserError, match=r"tokens only; give data\.template\.user_token"):
        Baichuan(user_token=10**6).encode(own, TALK)
    own.bos_token = None
    with pytest.raises(UserError, match="no begin-of-sequence token"):
        Llama2().encode(own, TALK)
    with pytest.raises(BadRecord, match="take turns"):
        Llama2().encode(tokenizer, TALK[:2] + TALK[3:])
    assert Baichuan().chat_template(tokenizer) is None


def test_the_store_carries_the_template(spec: Spec, tmp_path: Path) -> None:
    template = {"_target_": "easyllm.data.chat.templates.Plain", "user": "Q:", "assistant": "A:"}
    work(spec(tmp_path, data={"template": template}), "tokenize")
    carried = load_tokenizer(tmp_path / "store/tokenizer")
    text = carried.apply_chat_template(TALK[1:2], tokenize=False, add_generation_prompt=True)
    assert text == "Q: What is 2\U0001f600?\nA:"


def test_a_smoke_run_needs_no_tokens_that_its_vocabulary_lacks(spec: Spec, tmp_path: Path) -> None:
    run = spec(
        tmp_path,
        model={"config": LLAMA, "init": "random", "family": {"_target_": LLAMA_FAMILY}},
        data={"template": {"_target_": "easyllm.data.chat.formats.ChatML"}},
        training={"steps": 1},
        smoke={},
    )
    assert isinstance(shrink(run).data.template, TokenizerTemplate)
