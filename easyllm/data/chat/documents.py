"""The documents that a conversation becomes: each answer in the context of serving."""

from __future__ import annotations

import itertools
import json
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
from easyllm.data.chat.text_ids import TextIds
from easyllm.errors import BadRecord
from easyllm.spec.roles import ChatDocument, Message

INLINE = re.compile(r"\A\s*<(think|thinking|thought)>(.*?)</\1>\s*", re.DOTALL)
"""Reasoning that stands at the beginning of an answer's text."""

SHAPES = 2000
"""Shapes of conversations that are looked at; of more only the real words are."""

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
        mask: list[bool] = []
        arguments: tuple[str, ...] = (json.dumps(turn.arguments, sort_keys=True),)
        if before and context[: len(before.ids)] == before.ids:
            made.pop()
            mask, arguments = before.trained, before.arguments + arguments
        elif before:
            made[-1] = _with_rest(encoder, before, rest)
        mask = [*mask, *[False] * (len(context) - len(mask)), *[True] * len(answer)]
        made.append(ChatDocument(context + answer, mask, arguments))
        rest = turn.rest
    if made:
        made[-1] = _with_rest(encoder, made[-1], rest)
    return made


def _with_rest(encoder: TextIds, document: ChatDocument, rest: str) -> ChatDocument:
    """With the blanks that a template writes after the end of a turn, untrained."""
    ids = encoder.of(rest)
    return document._replace(ids=document.ids + ids, trained=document.trained + [False] * len(ids))


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
    """Whether the template itself closes reasoning that is not there, and has no switch with
    which a prompt does not open it."""
    return template.thinking_off is None and body.lstrip().startswith(tag.closing)


def _own_words(
    template: ChatTemplate, messages: Messages, place: int, whole: str, arguments: Arguments
) -> int:
    """Where in ``whole`` the words of the answer at ``place`` begin, behind what introduces it."""
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
    """The answer in ``whole``, which does not begin with ``context``, and whether it follows
    there what the generation prompt adds to the messages before it."""
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
    """What of ``body`` is trained, up to the token that ends the turn, and blanks after that."""
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
    for name, text in _texts(message, own=False):
        if name != "the content":
            found = body.rfind(text.strip())
            ends.append(found + len(text.strip()) if found >= 0 else 0)
    return max(ends)


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
    outline = _outline(messages[: place + 1])
    shape = json.dumps(outline)
    shapes = template.lost_by_shape
    if shape not in shapes and len(shapes) < SHAPES:
        shapes[shape] = _lost_of_shape(template, outline, close_reasoning)
    lost = shapes.get(shape) or _lost(messages, checked, place, turn)
    if messages[0].get("tools") and not template.writes_calls:
        lost = "the tools"
    if lost:
        raise BadRecord(
            f"the tokenizer's chat_template drops {lost}; take it out of the record, or use a "
            "template that writes it"
        )


def _lost(messages: Messages, checked: int, place: int, turn: Turn) -> str | None:
    for at in range(checked, place + 1):
        rendering = turn.answer if at == place else turn.context
        for name, text in _texts(messages[at], own=at == place):
            if not _stands_in(text, rendering):
                return f"{name} of message {at + 1}"
    return None


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


def _lost_of_shape(template: ChatTemplate, outline: Messages, close_reasoning: bool) -> str | None:
    place = len(outline) - 1
    try:
        turn = turn_at(template, outline, place, close_reasoning)
    except BadRecord:  # the real words may be taken all the same
        return None
    return _lost(outline, 0, place, turn)


def _outline(messages: Messages) -> list[dict[str, Any]]:
    """The messages with each of their texts replaced by a word of its own, and each number,
    name and id by one of a few: what a template may look at apart from the words."""
    words = itertools.count()
    names: dict[str, str] = {}

    def worded(value: Any) -> Any:
        if isinstance(value, str):
            return f"kWord{next(words)}k" if value.strip() else ""
        if isinstance(value, Mapping):
            return {key: worded(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [worded(entry) for entry in value]
        return value if isinstance(value, bool | None) else 7

    def named(name: str) -> str:
        return names.setdefault(name, f"kName{len(names):04}")  # nine letters and digits

    def call(given: Mapping[str, Any]) -> dict[str, Any]:
        function = given["function"]
        arguments = worded(function.get("arguments"))
        made = {"type": "function", "function": {"name": named(function["name"]),
                                                 "arguments": arguments}}  # fmt: skip
        return {**made, "id": named(given["id"])} if given.get("id") else made

    made = []
    for message in messages:
        entry = {"role": message["role"], "content": worded(message["content"])}
        if message.get("reasoning_content"):
            entry["reasoning_content"] = worded(message["reasoning_content"])
        for key in ("name", "tool_call_id"):
            if message.get(key):
                entry[key] = named(message[key])
        if calls := message.get("tool_calls"):
            entry["tool_calls"] = [call(one) for one in calls]
        if tools := message.get("tools"):
            entry["tools"] = [_tool(named(tool["function"]["name"])) for tool in tools]
        made.append(entry)
    return made


def _tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"key": {"type": "string"}}}
    function = {"name": name, "description": "Look it up.", "parameters": parameters}
    return {"type": "function", "function": function}
