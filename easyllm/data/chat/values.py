"""Values of JSON: their kinds in words, and JSON texts as values."""

from __future__ import annotations

import json
from typing import Any

from easyllm.errors import BadRecord

SHOWN = 60
"""Characters of a value that an error shows."""


def kind(value: Any) -> str:
    """What a value is, in words: "an empty list", "a text", "null"."""
    if value is None:
        return "null"
    if isinstance(value, str | list | tuple | dict) and not value:
        return f"an empty {_name(value).partition(' ')[2]}"
    return _name(value)


def _name(value: Any) -> str:
    for kinds, name in (
        (str, "a text"),
        (bool, "true or false"),
        (int | float, "a number"),
        (dict, "an object"),
        (list | tuple, "a list"),
    ):
        if isinstance(value, kinds):
            return name
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def shown(value: Any) -> str:
    """A value as an error shows it: JSON, cut where it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        return kind(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def is_empty(value: Any) -> bool:
    """Whether a value is null, or an empty text, list or object; 0 and false are not empty."""
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)


def parsed(text: str) -> Any:
    """The value of a JSON text. Raises BadRecord, also where an object has a key twice."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"not JSON: {error}") from None


def unicode(text: str, what: str) -> str:
    """``text``. Raises BadRecord where it holds half of a surrogate pair, which JSON can spell
    and which is not valid Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(
            f"{what} is not Unicode at character {error.start + 1}: it holds half of a "
            "surrogate pair"
        ) from None
    return text


def json_value(value: Any, what: str) -> Any:
    """``value``. Raises BadRecord where JSON has no form for it: dates, bytes, NaN."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRecord(f"{what} is not a value of JSON: {error}") from None
    unicode(text, what)
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadRecord(f"the key {twice!r} occurs twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once)
