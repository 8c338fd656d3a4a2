"""The documents that a conversation becomes: each answer in the context of serving."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from easyllm.data.chat.rendering import Arguments, ChatTemplate, Messages, Refused, Tag
from easyllm.data.chat.text_ids import TextIds
from easyllm.errors import BadRecord
from easyllm.spec.roles import ChatDocument, Message

INLINE = re.compile(r"\A\s*<(think|thinking|thought)>(.*?)</\1>\s*", re.DOTALL)
"""Reasoning that stands at the beginning of an answer's text."""

_MARK = "kMark7"


class _Unfit(BadRecord):
    """An answer cannot be trained behind a prompt; why."""


@dataclass(frozen=True)
class Turn:
    """An answer as text: what it is asked with, what is trained, and what is written after it."""

    context: str
    answer: str
    rest: str
    arguments: Arguments
    """Arguments of the template with which the context was rendered."""


def documents(
    template: ChatTemplate, encoder: TextIds, messages: Messages, close_reasoning: bool
) -> list[ChatDocument]:
    """A conversation as the fewest documents in which each answer follows the very token ids
    with which a server would ask for it.

    The context of an answer is the conversation before it with the generation prompt. An answer
    joins the document of the answers before it where that document's ids begin its context;
    where the template writes the earlier turns in another way once there is a next one, it
    begins a document of its own. Only a document's own new answers are trained. Raises
    BadRecord where the template cannot express the conversation or drops a part of it, naming
    the part.
    """
    messages = reasoning_apart(template, messages)
    made: list[ChatDocument] = []
    checked = 0
    rest = ""
    for place, message in enumerate(messages):
        if message["role"] != "assistant" or not message.get("train", True) or is_empty(message):
            continue
        if place == 0:
            raise BadRecord(
                "the assistant speaks first, which the tokenizer's chat_template has no prompt "
                "for; begin with a user's turn"
            )
        turn = turn_at(template, messages, place, close_reasoning)
        check_nothing_lost(template, messages, checked, place, turn, close_reasoning)
        checked = place
        context = encoder.of(turn.context)
        answer = encoder.after(turn.context, turn.answer)
        before = made[-1] if made else None
        if before and context[: len(before.ids)] == before.ids and before.joins(turn.arguments):
            made.pop()
            mask = [*before.trained, *[False] * (len(context) - len(before.ids))]
        else:
            if before:
                made[-1] = _with_rest(encoder, before, rest)
            mask = [False] * len(context)
        made.append(
            ChatDocument(context + answer, [*mask, *[True] * len(answer)], turn.arguments)
        )
        rest = turn.rest
    if made:
        made[-1] = _with_rest(encoder, made[-1], rest)
    return made


def _with_rest(encoder: TextIds, document: ChatDocument, rest: str) -> ChatDocument:
    """With the blanks that a template writes after the end of a turn, untrained."""
    ids = encoder.of(rest)
    return document._replace(
        ids=document.ids + ids, trained=document.trained + [False] * len(ids)
    )


def is_empty(message: Message) -> bool:
    """Whether a message says nothing."""
    return not (
        message["content"].strip()
        or message.get("tool_calls")
        or str(message.get("reasoning_content") or "").strip()
    )


def reasoning_apart(template: ChatTemplate, messages: Messages) -> list[dict[str, Any]]:
    """The messages with reasoning that stands inline in an answer under its own key, where
    the template knows reasoning."""
    made = [dict(message) for message in messages]
    for message in made:
        if message["role"] == "assistant" and "reasoning_content" not in message:
            found = INLINE.match(message["content"])
            if found and template.knows_reasoning:
                message["content"] = message["content"][found.end() :]
                if found[2].strip():
                    message["reasoning_content"] = found[2].strip("\n")
    return made


def turn_at(
    template: ChatTemplate, messages: Messages, place: int, close_reasoning: bool
) -> Turn:
    """The answer at ``place`` with its context. Raises BadRecord."""
    reasoning = bool(messages[place].get("reasoning_content"))
    try:
        return _turn(template, messages, place, {})
    except _Unfit as error:
        switch = template.thinking_on if reasoning else template.thinking_off
        if switch is not None:
            try:
                return _turn(template, messages, place, switch)
            except (_Unfit, Refused):
                pass
        if close_reasoning and not reasoning:
            return _turn(template, messages, place, {}, close_reasoning=True)
        raise error


def _turn(
    template: ChatTemplate,
    messages: Messages,
    place: int,
    arguments: Arguments,
    close_reasoning: bool = False,
) -> Turn:
    message = messages[place]
    context = template.render(messages[:place], prompt=True, **arguments)
    whole = template.render(messages[: place + 1], **arguments)
    tag = Tag.at_end(context)
    reasoning = str(message.get("reasoning_content") or "").strip()
    said = whole[len(context) :] if whole.startswith(context) else None
    if reasoning and said is not None and reasoning in said:
        body = said
    elif tag and (reasoning or close_reasoning):
        own = whole[_own_words(template, messages, place, whole, arguments) :]
        if reasoning and reasoning in own:
            body = own
        else:
            body = f"{reasoning}{tag.before}{tag.closing}{tag.after}{own.lstrip()}"
    elif reasoning:
        raise _Unfit(
            f"the tokenizer's chat_template drops the reasoning of message {place + 1}; take it "
            "out of the record, or use a template that writes it"
        )
    elif said is not None and (tag is None or said.lstrip().startswith(tag.closing)):
        body = said
    elif tag:
        raise _Unfit(
            f"the generation prompt of the tokenizer's chat_template opens the reasoning, and "
            f"message {place + 1} has none; give the record reasoning_content, or train the "
            "closing tag at once with data.template.close_empty_reasoning=true"
        )
    else:
        body = whole[_own_words(template, messages, place, whole, arguments) :]
    return Turn(context, *_cut(template, message, body), arguments)


def _own_words(
    template: ChatTemplate, messages: Messages, place: int, whole: str, arguments: Arguments
) -> int:
    """Where in ``whole`` the words of the answer at ``place`` begin, behind what introduces it."""
    plain = {"role": "assistant", "content": _MARK}
    text = template.render([*messages[:place], plain], **arguments)
    before = text.rpartition(_MARK)[0]
    return next(
        (at for at, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b),
        min(len(before), len(whole)),
    )


def _cut(template: ChatTemplate, message: Message, body: str) -> tuple[str, str]:
    """What of ``body`` is trained, up to the token that ends the turn, and blanks after that."""
    call = bool(message.get("tool_calls"))
    end = (template.call_end if call else template.answer_end) or template.tokenizer.eos_token
    if end is None:
        return body.rstrip(), ""
    at = body.rfind(end) if template.ends_itself else -1
    if at < 0:
        return body.rstrip() + end, ""
    at += len(end)
    rest = body[at:]
    return body[:at], rest if rest.isspace() else ""


def check_nothing_lost(
    template: ChatTemplate,
    messages: Messages,
    checked: int,
    place: int,
    turn: Turn,
    close_reasoning: bool,
) -> None:
    """Raises BadRecord where a part of the messages from ``checked`` on stands neither in the
    context nor, of the answer at ``place``, in the answer; reasoning of earlier answers aside.

    A short text may stand in a rendering by chance. So messages of the same shape, with words
    that no template contains, are looked at too, once for each shape.
    """
    shape = _shape(messages[: place + 1])
    if shape not in template.lost_by_shape:
        template.lost_by_shape[shape] = _lost_of_shape(
            template, messages[: place + 1], close_reasoning
        )
    lost = template.lost_by_shape[shape] or _lost(messages, checked, place, turn)
    if lost:
        raise BadRecord(
            f"the tokenizer's chat_template drops {lost}; take it out of the record, or use a "
            "template that writes it"
        )


def _lost(messages: Messages, checked: int, place: int, turn: Turn) -> str | None:
    for name, text in _tools(messages):
        if not _stands_in(text, turn.context):
            return name
    for at in range(checked, place + 1):
        rendering = turn.answer if at == place else turn.context
        for name, text in _texts(messages[at], own=at == place):
            if not _stands_in(text, rendering):
                return f"{name} of message {at + 1}"
    return None


def _tools(messages: Messages) -> Iterator[tuple[str, str]]:
    for tool in messages[0].get("tools") or []:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
        if isinstance(name := function.get("name"), str):
            yield f"the tool {name}", name


def _texts(message: Message, own: bool) -> Iterator[tuple[str, str]]:
    """What of a message must be found in its rendering, by name."""
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


def _stands_in(text: str, rendering: str) -> bool:
    text = text.strip()
    return (
        text in rendering
        or json.dumps(text, ensure_ascii=False)[1:-1] in rendering
        or json.dumps(text)[1:-1] in rendering
    )


def _shape(messages: Messages) -> str:
    """What the messages have in common with others that differ in words only."""
    return json.dumps([_outline(message, []) for message in messages], sort_keys=True)


def _lost_of_shape(
    template: ChatTemplate, messages: Messages, close_reasoning: bool
) -> str | None:
    words: list[str] = []
    marked = [_outline(message, words) for message in messages]
    place = len(marked) - 1
    try:
        turn = turn_at(template, marked, place, close_reasoning)
    except BadRecord:  # the real words may be taken all the same
        return None
    return _lost(marked, 0, place, turn)


def _outline(message: Message, words: list[str]) -> dict[str, Any]:
    """The message with each of its texts replaced by a word of its own."""

    def worded(value: Any) -> Any:
        if isinstance(value, str):
            words.append(value)
            return f"kWord{len(words)}k" if value.strip() else ""
        if isinstance(value, Mapping):
            return {key: worded(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [worded(entry) for entry in value]
        return value

    made: dict[str, Any] = {"role": message["role"], "content": worded(message["content"])}
    for key in ("reasoning_content", "name"):
        if message.get(key):
            made[key] = worded(message[key])
    for key in ("tools", "tool_call_id", "train"):
        if key in message:
            made[key] = message[key]
    if calls := message.get("tool_calls"):
        made["tool_calls"] = [
            {
                **call,
                "function": {
                    "name": call["function"]["name"],
                    "arguments": worded(call["function"].get("arguments")),
                },
            }
            for call in calls
        ]
    return made
