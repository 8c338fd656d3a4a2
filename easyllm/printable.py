"""Makes text from files and models safe to print on a terminal."""

from __future__ import annotations

import re

UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that control a terminal, that change the order of others, or that cannot be
encoded."""


def printable(text: str, keep: str = "\n") -> str:
    """``text`` with escapes such as ``\\x1b`` for such characters, except for those in ``keep``."""

    def shown(match: re.Match[str]) -> str:
        return match[0] if match[0] in keep else ascii(match[0])[1:-1]

    return UNSEEN.sub(shown, text)


def some_of(names: list[str], limit: int = 8, sep: str = ", ") -> str:
    """Names for a message, the first few of many."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return sep.join(names[:limit]) + more
