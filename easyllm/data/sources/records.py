"""What a record holds: JSON objects, texts and conversations in the shapes people publish."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from easyllm.data.chat import beside, messages
from easyllm.data.chat.values import kind, parsed, shown
from easyllm.data.sources import io
from easyllm.errors import BadRecord
from easyllm.spec.roles import Document, File, Rejected

Values = Iterator[tuple[int, Any]]
"""Values of JSON with their line or place from 1; ``Rejected`` in place of a bad one."""


def json_values(file: File, lines: Iterator[tuple[int, str | Rejected]], longest: int) -> Values:
    """The values of JSON Lines by line; those of a file named ``*.json`` by place.

    Such a file is one list, or one object of lists, and is held in memory whole. Where it
    holds JSON Lines, as ``datasets`` and pandas write them under that name, it is read line
    by line, with at most ``longest`` bytes a line.
    """
    if io.plain_name(file).endswith(".json") and not _begins_with_a_line(file, longest):
        yield from _whole(file, lines)
    else:
        yield from _by_line(lines)


def json_objects(file: File, lines: Iterator[tuple[int, str | Rejected]], longest: int) -> Values:
    """Like ``json_values``; a value that is not an object is rejected."""
    for number, value in json_values(file, lines, longest):
        if not isinstance(value, dict | Rejected):
            value = Rejected(number, f"it is {kind(value)}, not an object{_remedy(value)}")
        yield number, value


def _remedy(value: Any) -> str:
    return "; a file that is one list is named .json" if isinstance(value, list) else ""


def _by_line(lines: Iterator[tuple[int, str | Rejected]]) -> Values:
    for number, line in lines:
        if isinstance(line, Rejected):
            yield number, line
        elif line and not line.isspace():
            try:
                yield number, parsed(line)
            except BadRecord as error:
                # such as the first line of a list that is written over several lines
                remedy = _remedy([]) if line.strip() == "[" else ""
                yield number, Rejected(number, f"{error}{remedy}")


def _begins_with_a_line(file: File, longest: int) -> bool:
    """Whether the first line of a file is a whole object and more than blanks follow: then
    all of the file cannot be one JSON text. Also true of a single object that is a record."""
    first = None
    for _, line in io.lines(file, longest):
        if isinstance(line, Rejected):
            return False
        if line.isspace() or not line:
            continue
        if first is not None:
            return True
        if not line.lstrip().startswith("{"):
            return False
        try:
            first = parsed(line)
        except BadRecord:
            return False
    return first is not None and not _are_columns(first)


def _are_columns(value: Mapping[str, Any]) -> bool:
    """Whether an object holds many records, a list of values for each key, and is not itself
    one record with a conversation."""
    return bool(value) and all(
        isinstance(column, list)
        and not (column and isinstance(column[0], Mapping) and {"role", "from"} & column[0].keys())
        for column in value.values()
    )


def _whole(file: File, lines: Iterator[tuple[int, str | Rejected]]) -> Values:
    with io.opened(file) as handle:
        try:
            with io.whole():
                data = handle.read()
        except io.Broken as error:
            yield 1, Rejected(1, str(error))
            return
    if not data.strip():
        return
    text = io.text_of(data.removeprefix(b"\xef\xbb\xbf"))
    try:
        if isinstance(text, ValueError):
            raise BadRecord(str(text))
        entries = _entries(parsed(text))
    except BadRecord as error:
        # a file of JSON Lines whose first line is damaged
        values = list(_by_line(lines))
        if 2 * sum(isinstance(value, dict) for _, value in values) > len(values):
            yield from values
        else:
            yield 1, Rejected(1, str(error))
        return
    yield from enumerate(entries, 1)


def _entries(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    if not isinstance(value, Mapping):
        raise BadRecord(f"it is {kind(value)}, neither a list of objects nor an object of lists")
    if _are_columns(value):
        if len({len(column) for column in value.values()}) > 1:
            raise BadRecord(f"its lists ({', '.join(value)}) are not of equal length")
        return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    return [value]  # one record, written over several lines


def keyed(entry: Mapping[str, Any], key: str) -> Any:
    """The value of a key. Raises BadRecord, naming the keys that there are."""
    if key not in entry:
        raise BadRecord(f"no field {key!r} (it has: {', '.join(map(str, entry)) or 'none'})")
    return entry[key]


def text_in(key: str, value: Any) -> str:
    """``value``, which a key holds. Raises BadRecord where it is not a text, so that null and
    objects are never written as Python writes them."""
    if not isinstance(value, str):
        value_shown = "" if value is None else f", {shown(value)}"
        raise BadRecord(f"{key!r} is {kind(value)}{value_shown}, not a text")
    return value


def document_in(
    entry: Mapping[str, Any], key: str, ignored: Collection[str] | None = None
) -> Document:
    """The text or conversation that a key holds. Raises BadRecord."""
    value = keyed(entry, key)
    if isinstance(value, str):
        return value
    if value is None:
        raise BadRecord(f"{key!r} is null")
    if not isinstance(value, Sequence):
        raise BadRecord(
            f"{key!r} is {kind(value)}, {shown(value)}, neither a text nor a conversation"
        )
    return beside.conversation(value, entry, ignored)


def turns_taken(texts: Sequence[str]) -> list[dict[str, Any]]:
    """User and assistant in turn, as messages."""
    turns = [
        {"role": ("user", "assistant")[place % 2], "content": text}
        for place, text in enumerate(texts)
    ]
    return messages.conversation(turns)
