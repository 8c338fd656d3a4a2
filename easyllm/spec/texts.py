"""Checks for texts that cannot be a file name, a path or UTF-8. No files are read."""

from __future__ import annotations

import math
import os.path
from collections.abc import Mapping
from typing import Any

NAME, PATH = 255, 4095
"""Most bytes of a file's name and of a path on Linux."""
DEPTH = 32
"""Most levels of nested maps and lists."""
DEEP = f"holds more than {DEPTH} maps or lists within each other"


def unusable(value: Any, depth: int = DEPTH) -> str:
    """What is wrong with the texts, keys and numbers of a plain value; empty where nothing is."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping | list | tuple):
        if not depth:
            return DEEP
        parts = [*map(str, value), *value.values()] if isinstance(value, Mapping) else value
        return next(filter(None, (unusable(part, depth - 1) for part in parts)), "")
    if isinstance(value, float) and not math.isfinite(value):
        return "holds a number that is not finite"
    return ""


def deep(value: Any, depth: int = DEPTH) -> bool:
    """Whether the maps and lists of a plain value are nested deeper than is read."""
    if not isinstance(value, Mapping | list | tuple):
        return False
    parts = value.values() if isinstance(value, Mapping) else value
    return not depth or any(deep(part, depth - 1) for part in parts)


def named(value: Any) -> Any:
    """A plain value whose keys are text, as in JSON."""
    if isinstance(value, Mapping):
        return {_key(key): named(below) for key, below in value.items()}
    return [named(below) for below in value] if isinstance(value, list | tuple) else value


def _key(key: Any) -> str:
    plain = key is None or isinstance(key, bool)
    return {None: "null", True: "true", False: "false"}[key] if plain else str(key)


def _text(text: str) -> str:
    if "\0" in text:
        return "holds a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "is not UTF-8 text"
    return ""


def no_path(text: str) -> str:
    """Why no file can have this path; empty where one can."""
    if not text.strip():
        return "is empty"
    if "://" in text:
        return ""
    if text.startswith("~") and os.path.expanduser(text) == text:  # noqa: PTH111  (Path's raises)
        return "names the home of a user who is not known here"
    long = [name for name in text.split("/") if len(name.encode()) > NAME]
    if long:
        return f"has a name of {len(long[0].encode())} bytes; a file's has {NAME} at most"
    if len(text.encode()) > PATH:
        return f"has {len(text.encode())} bytes; a path has {PATH} at most"
    return ""
