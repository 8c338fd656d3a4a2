"""Conversations under small templates, one of each kind: what is trained, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easyllm.data.chat.messages import conversation
from easyllm.data.chat.templates import Plain, TokenizerTemplate
from easyllm.data.chat.text_ids import TextIds
from easyllm.data.tokenizers.encode import encode
from easyllm.errors import BadRecord
from easyllm.spec.roles import Record
from tests.data.chat.published import chat, tokenizer_for, tool_chat
from tests.data.chat.test_published import answers, check
from tests.data.conftest import vocabulary

START, END = "<|im_start|>", "<|im_end|>"
TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def turns(answer: str, other: str = TURN) -> str:
    """A template that writes the assistant's turns by ``answer``."""
    return (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        f"{answer}{{% else %}}{other}{{% endif %}}{{% endfor %}}"
    )


APPENDS = turns(TURN) + ASK
UNENDED = turns("{{ '<|im_start|>assistant\n' + m.content }}") + ASK
FORGETS = (
    turns(
        "{{ '<|im_start|>assistant\n' }}{% if loop.last %}{{ '<think>\n' + "
        "(m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}"
        "{{ m.content + '<|im_end|>\n' }}"
    )
    + ASK
)
LAST_ENDS_OTHERWISE = (
    turns(
        "{{ '<|im_start|>assistant\n' + m.content }}"
        "{{ '<|return|>' if loop.last else '<|im_end|>' }}"
    )
    + ASK
)
PROMPT_ADDS = turns(TURN) + ASK.replace("assistant\n", "assistant\n<|channel|>")
SYSTEM_MOVES = (
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>user\n' }}"
    "{% if loop.last %}{{ system }}{% endif %}"
    "{{ m.content + '<|im_end|>\n<|im_start|>assistant\n' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)
NO_SYSTEM = APPENDS.replace("{% if m", "{% if m.role == 'system' %}{% elif m", 1)
ALWAYS_PROMPTS = turns(TURN) + "{{ '<|im_start|>assistant\n' }}"


@pytest.mark.parametrize(
    ("template", "documents"),
    [
        (APPENDS, 1),
        (UNENDED, 1),
        (FORGETS, 3),
        (LAST_ENDS_OTHERWISE, 3),
        (PROMPT_ADDS, 3),
        (ALWAYS_PROMPTS, 1),
    ],
)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_kinds_of_templates(template: str, documents: int, count: int) -> None:
    tokenizer = tokenizer_for(template)
    check(tokenizer, chat(count), count if documents == 3 else 1, "reasoning_content")


def test_a_system_prompt_that_moves_is_trained_where_it_is_served() -> None:
    tokenizer = tokenizer_for(SYSTEM_MOVES)
    check(tokenizer, chat(2, system=True), 2, "reasoning_content")
    contexts = [tokenizer.decode(ids) for ids, _, _ in answers(
        TokenizerTemplate().encode(tokenizer, chat(2, system=True)))]  # fmt: skip
    assert all("Be kind to all." in context for context in contexts)


def test_what_ends_a_turn() -> None:
    for template, end in ((APPENDS, END), (UNENDED, START), (LAST_ENDS_OTHERWISE, "<|return|>")):
        tokenizer = tokenizer_for(template)
        assert TokenizerTemplate().stop_tokens(tokenizer) == [tokenizer.convert_tokens_to_ids(end)]
        ((_, answer, _),) = answers(TokenizerTemplate().encode(tokenizer, chat(1)))
        assert tokenizer.decode(answer) == f"Answer number 0 is here.{end}"


def test_a_template_without_special_tokens_ends_with_the_sequence() -> None:
    tokenizer = tokenizer_for(
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    (first, second) = answers(TokenizerTemplate().encode(tokenizer, chat(2)))
    assert tokenizer.decode(first[1]) == " Answer number 0 is here.<EOS>"
    assert "<EOS>" not in tokenizer.decode(second[0]), "the history has no such token"


def test_untrained_answers_stand_in_the_contexts_of_others() -> None:
    tokenizer = tokenizer_for(APPENDS)
    messages = chat(3)
    messages[3]["train"] = False
    (document,) = TokenizerTemplate().encode(tokenizer, messages)
    said = [tokenizer.decode(answer) for _, answer, _ in answers([document])]
    assert said == [f"Answer number {n} is here.{END}" for n in (0, 2)]
    assert "Answer number 1" in tokenizer.decode(document.ids)
    for message in messages:
        message["train"] = False
    assert TokenizerTemplate().encode(tokenizer, messages) == []
    assert Plain().encode(tokenizer, messages) == []


def test_reasoning_is_trained_or_the_record_is_rejected() -> None:
    messages = conversation(
        [
            {"role": "user", "content": "Pick one."},
            {"role": "assistant", "content": "Red.", "thinking": "Colours: red, blue."},
        ]
    )
    inline = [
        messages[0],
        {"role": "assistant", "content": "<think>\nColours: red, blue.\n</think>\n\nRed."},
    ]
    tokenizer = tokenizer_for(FORGETS)
    for form in (messages, inline):
        ((_, answer, _),) = answers(TokenizerTemplate().encode(tokenizer, form))
        assert tokenizer.decode(answer) == f"<think>\nColours: red, blue.\n</think>\n\nRed.{END}"
    tokenizer = tokenizer_for(APPENDS)
    with pytest.raises(BadRecord, match="drops the reasoning of message 2"):
        TokenizerTemplate().encode(tokenizer, messages)
    # a template that knows nothing of reasoning writes it where it stands
    ((_, answer, _),) = answers(TokenizerTemplate().encode(tokenizer, inline))
    assert tokenizer.decode(answer) == inline[1]["content"] + END
    with pytest.raises(BadRecord, match="has reasoning"):
        Plain().encode(tokenizer, messages)


def test_reasoning_as_a_part_of_the_content() -> None:
    """As Mistral's templates read it."""
    answer = (
        "{{ '<|im_start|>assistant\n' }}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{% if part.type == 'thinking' %}"
        "{{ '[THINK]' + part.thinking + '[/THINK]' }}{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}{% endif %}{{ '<|im_end|>' }}"
    )
    tokenizer = tokenizer_for(turns(answer) + ASK)
    ((_, said, _),) = answers(TokenizerTemplate().encode(tokenizer, chat(1, reasoning=True)))
    expected = "[THINK]Thought number 0 was deep.[/THINK]Answer number 0 is here."
    assert tokenizer.decode(said) == expected + END


@pytest.mark.parametrize(
    ("template", "lost"),
    [
        (NO_SYSTEM, "the content of message 1"),
        (APPENDS, "the tools"),
        (turns(TURN, "{% if m.role != 'tool' %}" + TURN + "{% endif %}") + ASK, "the tools"),
    ],
)  # fmt: skip
def test_what_a_template_drops_is_named(template: str, lost: str) -> None:
    tokenizer = tokenizer_for(template)
    messages = tool_chat() if "tools" in lost else chat(1, system=True)
    with pytest.raises(BadRecord, match=f"drops {lost}"):
        TokenizerTemplate().encode(tokenizer, messages)


def test_a_short_word_is_missed_too() -> None:
    """ "a" stands in every rendering: whether it was written shows with other words."""
    messages = [{"role": "system", "content": "a"}, *chat(1)]
    with pytest.raises(BadRecord, match="drops the content of message 1"):
        TokenizerTemplate().encode(tokenizer_for(NO_SYSTEM), messages)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no such roles') }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ messages[9].content.nothing }}",
        "{{ none | tojson | no_such_filter }}",
        "{{ range(10 ** 9) | list }}",
    ],
)  # fmt: skip
def test_whatever_a_template_raises_rejects_the_record(template: str) -> None:
    tokenizer = tokenizer_for(template)
    encoded = encode(vocabulary(tokenizer), TokenizerTemplate(), [Record(7, chat(1))])
    assert encoded.shard is None and encoded.rejected[0].line == 7
    assert "chat_template refuses a conversation of [user]" in encoded.rejected[0].reason


def test_unrolled_conversations_are_counted() -> None:
    tokenizer = tokenizer_for(FORGETS)
    records = [Record(1, chat(3)), Record(2, chat(1))]
    encoded = encode(vocabulary(tokenizer), TokenizerTemplate(), records)
    assert encoded.shard is not None and encoded.shard.documents == 4
    counts = encoded.chats
    assert (counts.conversations, counts.unrolled) == (2, 1)
    lengths = encoded.shard.lengths[:3].tolist()
    assert counts.repeated_tokens == sum(lengths) - max(lengths)
    assert counts.arguments == {"{}": 4}


TEXTS = st.lists(
    st.sampled_from([START, END, "<|end|>", "<word>", "\n", "  ", "user", "ab", "é😀", "<|im_"]),
    max_size=12,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS)
def test_ids_of_parts_are_those_of_the_whole(context: str, text: str) -> None:
    made = _with_odd_tokens()
    ids = TextIds(made)
    for one in (context, context + text):
        assert ids.of(one) == made(one, add_special_tokens=False)["input_ids"]
    after = ids.after(context, text)
    assert made.decode(ids.of(context) + after) == made.decode(ids.of(context)) + made.decode(after)
    joined = ids.of(context + text)
    if joined[: len(ids.of(context))] == ids.of(context):
        assert ids.of(context) + after == joined


def _with_odd_tokens() -> Any:
    if not _ODD:
        from tokenizers import AddedToken

        made = tokenizer_for(APPENDS)
        made.add_tokens([AddedToken("<|end|>", rstrip=True, special=True, normalized=False)])
        made.add_tokens([AddedToken("<word>", lstrip=True, special=False)])
        _ODD.append(made)
    return _ODD[0]


_ODD: list[Any] = []
