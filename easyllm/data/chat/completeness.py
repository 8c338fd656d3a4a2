"""Whether a chat template writes all that a conversation says."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

from easyllm.data.chat.answers import Turn, texts_of, turn_at
from easyllm.data.chat.rendering import ChatTemplate, Messages
from easyllm.errors import BadRecord

SHAPES = 2000
"""Shapes of conversations that are checked; beyond that only the real words are checked."""


def check_nothing_lost(
    template: ChatTemplate,
    messages: Messages,
    checked: int,
    place: int,
    turn: Turn,
    close_reasoning: bool,
) -> None:
    """Raises BadRecord where the template drops a part of the messages from ``checked`` on.

    The answer at ``place`` must be in the answer's text and the messages before it in the
    context, except for the reasoning of earlier answers. A short text may be in a rendering by
    chance. So messages of the same shape, with words that no template contains, are checked
    too, once for each shape.
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
        for name, text in texts_of(messages[at], own=at == place):
            if not _stands_in(text, rendering):
                return f"{name} of message {at + 1}"
    return None


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
    except BadRecord:  # the template may still accept the real words
        return None
    return _lost(outline, 0, place, turn)


def _outline(messages: Messages) -> list[dict[str, Any]]:
    """The messages with each of their texts replaced by a different word, and each number,
    name and id by one of a few: what a template may read besides the words."""
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
