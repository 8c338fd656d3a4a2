"""An answer of a conversation in the context in which it is served, as text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from easyllm.data.chat.rendering import (
    Arguments,
    ChatTemplate,
    Messages,
    Refused,
    Tag,
    common,
)
from easyllm.errors import BadRecord
from easyllm.spec.roles import Message

INLINE = re.compile(r"\A\s*<(think|thinking|thought)>(.*?)</\1>\s*", re.DOTALL)
"""Reasoning at the beginning of an answer's text."""

_MARK = "kMark7"


class _Unfit(BadRecord):
    """An answer cannot be trained after a prompt; the message says why."""


@dataclass(frozen=True)
class Turn:
    """An answer as text: what it is asked with, what is trained, and what is written after it."""

    context: str
    answer: str
    rest: str
    arguments: Arguments
    """Arguments of the template with which the context was rendered."""


def separate_reasoning(template: ChatTemplate, messages: Messages) -> list[dict[str, Any]]:
    """The messages, with reasoning inside an answer's text moved to its own key where the
    template knows reasoning."""
    made = [dict(message) for message in messages]
    for message in made:
        if message["role"] == "assistant" and "reasoning_content" not in message:
            found = INLINE.match(message["content"])
            if found and template.knows_reasoning:
                message["content"] = message["content"][found.end() :]
                if found[2].strip():
                    message["reasoning_content"] = found[2].strip("\n")
    return made


def turn_at(template: ChatTemplate, messages: Messages, place: int, close_reasoning: bool) -> Turn:
    """The answer at ``place`` with its context. Raises BadRecord."""
    reasoning = bool(messages[place].get("reasoning_content"))
    try:
        return _turn(template, messages, place, {}, close_reasoning)
    except _Unfit as error:
        switch = template.thinking_on if reasoning else template.thinking_off
        if switch is None:
            raise
        try:
            return _turn(template, messages, place, switch, close_reasoning)
        except (_Unfit, Refused):
            raise error from None


def _turn(
    template: ChatTemplate,
    messages: Messages,
    place: int,
    arguments: Arguments,
    close_reasoning: bool,
) -> Turn:
    message = messages[place]
    context = template.render(messages[:place], prompt=True, **arguments)
    whole = template.render(messages[: place + 1], **arguments)
    tag = Tag.at_end(context)
    reasoning = str(message.get("reasoning_content") or "").strip()
    if whole.startswith(context):
        body, follows = whole[len(context) :], True
    else:
        own = _own_words(template, messages, place, whole, arguments)
        body, follows = _behind_header(template, messages, place, context, whole, own, arguments)
    if reasoning and reasoning in body and (follows or tag):
        pass
    elif tag and (reasoning or close_reasoning):
        body = whole[_own_words(template, messages, place, whole, arguments) :].lstrip()
        body = f"{reasoning}{tag.before}{tag.closing}{tag.after}{body}"
    elif reasoning:
        raise _Unfit(
            f"the tokenizer's chat_template drops the reasoning of message {place + 1}; take it "
            "out of the record, or use a template that writes it"
        )
    elif tag and not (follows and _closes(template, tag, body)):
        raise _Unfit(
            f"the generation prompt of the tokenizer's chat_template opens the reasoning, and "
            f"message {place + 1} has none; give the record reasoning_content, or train the "
            "closing tag at once with data.template.close_empty_reasoning=true"
        )
    return Turn(context, *_cut(template, message, body), arguments)


def _closes(template: ChatTemplate, tag: Tag, body: str) -> bool:
    """Whether the template itself closes empty reasoning, and has no switch for a prompt that
    does not open the reasoning."""
    return template.thinking_off is None and body.lstrip().startswith(tag.closing)


def _own_words(
    template: ChatTemplate, messages: Messages, place: int, whole: str, arguments: Arguments
) -> int:
    """Where in ``whole`` the words of the answer at ``place`` begin, after what introduces it."""
    plain = {"role": "assistant", "content": _MARK}
    text = template.render([*messages[:place], plain], **arguments)
    return len(common(text.rpartition(_MARK)[0], whole))


def _behind_header(
    template: ChatTemplate,
    messages: Messages,
    place: int,
    context: str,
    whole: str,
    own: int,
    arguments: Arguments,
) -> tuple[str, bool]:
    """The answer in ``whole``, which does not begin with ``context``, and whether the answer
    follows what the generation prompt adds to the messages before it."""
    try:
        before = template.render(messages[:place], **arguments)
    except Refused:  # some templates want an answer at the end
        before = ""
    header = context[len(before) :] if before and context.startswith(before) else ""
    reasoning = str(messages[place].get("reasoning_content") or "").strip()
    first = whole.rfind(reasoning) if reasoning else own
    at = whole.rfind(header, 0, max(first, 0)) if header.strip() else -1
    return (whole[own:], False) if at < 0 else (whole[at + len(header) :], True)


def _cut(template: ChatTemplate, message: Message, body: str) -> tuple[str, str]:
    """The trained part of ``body``, up to the token that ends the turn, and the blanks after it."""
    call = bool(message.get("tool_calls"))
    end = (template.call_end if call else template.answer_end) or template.tokenizer.eos_token
    if end is None:
        return body.rstrip(), ""
    at = body.find(end, _last_argument(message, body)) if call else -1
    if at < 0 and template.ends_itself:
        at = body.rfind(end)
    if at < 0:
        return body.rstrip() + end, ""
    at += len(end)
    rest = body[at:]
    return body[:at], rest if rest.isspace() else ""


def _last_argument(message: Message, body: str) -> int:
    """Where in ``body`` the last of a call's own words ends."""
    ends = [0]
    for name, text in texts_of(message, own=False):
        if name != "the content":
            found = body.rfind(text.strip())
            ends.append(found + len(text.strip()) if found >= 0 else 0)
    return max(ends)


def texts_of(message: Message, own: bool) -> Iterator[tuple[str, str]]:
    """The texts of a message that must be found in its rendering, by name."""
    yield "the content", message["content"]
    if own:
        yield "the reasoning", str(message.get("reasoning_content") or "")
    for call in message.get("tool_calls") or []:
        yield "a call's name", call["function"]["name"]
        for text in _leaves(call["function"].get("arguments")):
            yield "a call's argument", text


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _leaves(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _leaves(entry)
