"""How values are written on the command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
"""What ``\\n``, ``\\t`` and ``\\r`` mean between double quotes, as in YAML."""
PIECES = re.compile(r"""\\.|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|.""", re.DOTALL)
"""A quoted text, a character after a backslash, or one character."""
CLOSING = {"[": "]", "{": "}", "(": ")"}
LONGEST = 200
"""Most characters of a value that a remedy repeats."""


def with_line_breaks(text: str) -> str:
    """A typed value in which ``\\n``, ``\\t`` and ``\\r`` between double quotes are what YAML
    takes them for; Hydra takes them for a backslash and a letter."""

    def escaped(match: re.Match[str]) -> str:
        piece = match[0]
        if len(piece) < 2 or not piece.startswith('"'):
            return piece
        return re.sub(r"\\(.)", lambda m: ESCAPES.get(m[1], m[0]), piece, flags=re.DOTALL)

    return PIECES.sub(escaped, text) if "\\" in text else text


def plain_escape(text: str) -> bool:
    """Whether a typed value has ``\\n`` outside double quotes."""
    return "\\n" in text and any(
        "\\n" in piece for piece in PIECES.findall(text) if not piece.startswith('"')
    )


def unreadable(text: str) -> str:
    """Why Hydra's grammar does not take a typed value."""
    open_: list[str] = []
    for piece in PIECES.findall(text):
        if piece in ("'", '"'):
            return "a quotation mark is not closed"
        if piece in CLOSING:
            open_.append(CLOSING[piece])
        elif piece in CLOSING.values() and (not open_ or open_.pop() != piece):
            return f"a {piece} closes nothing"
    if open_:
        return f"a {open_[-1]} is missing"
    if re.search(r"(^|[\[{(,])\s*,|,\s*([\]})]|$)", text):
        return "a value is missing beside a comma"
    if re.fullmatch(r"\w+\(.*\)", text, re.DOTALL):
        return "it is written as a function, but is none that can be computed"
    if text.lstrip("+-").replace("_", "").isdigit():
        return "it has too many digits for a number"
    return "it has characters that are allowed between quotation marks only"


def quoted(key: str, text: str) -> str:
    """The word, as it is typed in a shell, that gives ``key`` exactly ``text``."""
    if len(text) > LONGEST:
        return f"put the value of {key} between quotation marks"
    return shlex.quote(f"{key}={literal(text)}")


def literal(text: str) -> str:
    """``text`` between quotation marks, as Hydra's grammar takes it."""
    text = text.replace("${", "\\${")
    if '"' not in text and "\\" not in text:
        return f'"{text}"'
    # a backslash is a plain character, except before the quotation mark that ends the text
    body = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{body}'"


def spelled(value: Any) -> str:
    """A plain value in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return literal(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{spelled(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(spelled, value)) + "]"
    return repr(value)


def elements(text: str) -> list[str] | None:
    """The elements of a list as they were typed; None where ``text`` is no list."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    found, depth = [""], 0
    for piece in PIECES.findall(text[1:-1]):
        depth += (piece in CLOSING) - (piece in CLOSING.values())
        if piece == "," and depth == 0:
            found.append("")
        else:
            found[-1] += piece
    return [element.strip() for element in found]
