"""A mistake in a spec, described so that the user can fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


class Absent:
    """The type of ABSENT, which means that no value was given where None is itself a value."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Any = Absent()
UNKNOWN = "no such key"
"""The message of a problem with a key that the spec does not have."""
REQUIRED = "must be given"
"""The message of a problem with a key that has no value and no default."""
TEXT = "must be text"
"""The message of a problem with a value that was read as something else than text."""


@dataclass(frozen=True)
class Problem:
    """One mistake.

    ``key`` is the dotted key to fix, ``value`` its value (``ABSENT`` where it has none),
    ``message`` what is wrong and ``remedy`` what would be right.
    ``also`` names the further keys that take part in a cross-field check: such a
    problem is not reported while one of them is wrong by itself.
    """

    key: str
    value: Any
    message: str
    remedy: str = ""
    also: tuple[str, ...] = ()


class SpecError(Exception):
    """A spec with every problem that was found in it."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{p.key}: {p.message}" for p in self.problems))


def without_consequences(own: list[Problem], cross: Iterable[Problem]) -> list[Problem]:
    """``own`` and those of ``cross`` that do not merely follow from a key already in ``own``."""
    wrong = {p.key for p in own}

    def follows(problem: Problem) -> bool:
        return any(
            key == bad or key.startswith(bad + ".") or bad.startswith(key + ".")
            for key in (problem.key, *problem.also)
            for bad in wrong
        )

    return own + [p for p in cross if not follows(p)]


def dotted(at: str, name: object) -> str:
    """The dotted key of ``name`` under the key ``at``; a blank name is shown in quotes."""
    shown = str(name) if str(name).strip() else repr(name)
    return f"{at}.{shown}" if at else shown


def near(word: str, known: Iterable[str], under: str = "") -> str:
    """'did you mean …?' for the closest of ``known``, or the empty string.

    ``under`` is the dotted key that the words are under.
    """
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    if not match:
        return ""
    return f"did you mean {under}.{match[0]}?" if under else f"did you mean {match[0]}?"
