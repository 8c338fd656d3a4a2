"""What a record holds: JSON objects, texts and conversations in the shapes people publish."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from easyllm.data import inputs
from easyllm.errors import BadRecord
from easyllm.spec.roles import Document, File, Rejected

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "observation": "tool",
}
"""Names of speakers in published data, and the roles of chat templates."""

CARRIED = ("tool_calls", "tool_call_id", "name")
"""Keys of a message that go on to the chat template."""

Numbered = Iterator[tuple[int, dict[str, Any] | Rejected]]


def json_objects(
    file: File, lines: Iterator[tuple[int, str | Rejected]], whole: bool = False
) -> Numbered:
    """The objects of JSON Lines by line, or, where ``whole``, of one JSON text by place."""
    if whole:
        yield from _whole(file)
        return
    for number, line in lines:
        if isinstance(line, Rejected):
            yield number, line
        elif line and not line.isspace():
            try:
                yield number, _object(_parsed(line))
            except BadRecord as error:
                yield number, Rejected(number, str(error))


def _whole(file: File) -> Numbered:
    with inputs.opened(file) as handle:
        try:
            with inputs.whole():
                data = handle.read()
        except inputs.Broken as error:
            yield 1, Rejected(1, str(error))
            return
    if not data.strip():
        return
    try:
        text = inputs.text_of(data.removeprefix(b"\xef\xbb\xbf"))
        if isinstance(text, ValueError):
            raise BadRecord(str(text))
        entries = _parsed(text)
        if isinstance(entries, Mapping):
            entries = _rows(entries)
        if not isinstance(entries, list):
            raise BadRecord("is neither a list of objects nor an object of lists")
    except BadRecord as error:
        yield 1, Rejected(1, str(error))
        return
    for number, entry in enumerate(entries, 1):
        try:
            yield number, _object(entry)
        except BadRecord as error:
            yield number, Rejected(number, str(error))


def _rows(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    lengths = {len(v) if isinstance(v, list) else None for v in columns.values()}
    if len(lengths) != 1 or None in lengths:
        raise BadRecord(f"its object's values ({', '.join(columns)}) are not lists of equal length")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _parsed(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"not JSON: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadRecord(f"the key {twice!r} stands twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def _object(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise BadRecord(f"is no object, but {_kind(entry)}")
    return entry


def keyed(entry: Mapping[str, Any], key: str) -> Any:
    """The value of a key. Raises BadRecord, naming what keys there are."""
    if key not in entry:
        raise BadRecord(f"no field {key!r} (it has: {', '.join(map(str, entry)) or 'none'})")
    return entry[key]


def document_in(entry: Mapping[str, Any], key: str) -> Document:
    """The text or conversation that a key holds. Raises BadRecord."""
    value = keyed(entry, key)
    if isinstance(value, str):
        return value
    try:
        return conversation(value)
    except BadRecord as error:
        raise BadRecord(f"{key!r} is neither a text nor a conversation: {error}") from None


def conversation(turns: Any) -> list[dict[str, Any]]:
    """Messages ``{"role", "content"}``, or ``{"from", "value"}``, as chat templates take
    them. Raises BadRecord."""
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise BadRecord(f"a conversation is a list of messages, not {_kind(turns)}")
    return [_message(number, turn) for number, turn in enumerate(turns, 1)]


def _message(number: int, turn: Any) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise BadRecord(f"message {number} is no object, but {_kind(turn)}")
    speaker = turn.get("role", turn.get("from"))
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise BadRecord(f"message {number} is by {speaker!r}, not by one of {', '.join(ROLES)}")
    content = turn.get("content", turn.get("value"))
    carried = {key: turn[key] for key in CARRIED if turn.get(key)}
    if content is None and "tool_calls" in carried:
        content = ""
    if isinstance(content, list):
        if not all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
            raise BadRecord(f"message {number} has parts that are no text")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise BadRecord(f"message {number} holds no text, but {_kind(content)}")
    return {"role": ROLES[speaker], "content": content, **carried}


def turns_taken(texts: Sequence[str]) -> list[dict[str, Any]]:
    """User and assistant in turn."""
    return [
        {"role": ("user", "assistant")[place % 2], "content": text}
        for place, text in enumerate(texts)
    ]


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")
