"""Text from elsewhere, as it may be printed on a terminal."""

from __future__ import annotations

import re

UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal obeys instead of showing, that change the order of others, or that
no encoding has."""


def printable(text: str, keep: str = "\n") -> str:
    """``text`` with escapes such as ``\\x1b`` for such characters, those in ``keep`` aside."""

    def shown(match: re.Match[str]) -> str:
        return match[0] if match[0] in keep else ascii(match[0])[1:-1]

    return UNSEEN.sub(shown, text)


def some_of(names: list[str], limit: int = 8, sep: str = ", ") -> str:
    """Names for a message, the first few of many."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return sep.join(names[:limit]) + more
