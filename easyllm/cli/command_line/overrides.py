"""The ``key=value`` words of the command line, read by Hydra's grammar."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from easyllm.cli.command_line import quoting
from easyllm.cli.library import Library
from easyllm.spec.problems import ABSENT, Problem, SpecError
from easyllm.spec.schema import TARGET, role_at

BRACKETED = re.compile(r"[\w./:-]+\[[\w.,*]*\]")
"""A value such as ``local[4]``, which Hydra's grammar takes within quotes only."""
IN_ROOT = {"model", "data", "parallelism", "hardware"}
"""Groups of which each run has an option."""
TOGETHER = {"data", "tracker"}
"""Groups of which a run can have several options."""
ALONE = (IN_ROOT | {"recipe", "engine", "smoke"}) - TOGETHER
"""Groups of which a run has at most one option."""
SEVERAL = "is several options, but a run has one of this group"


@dataclass(frozen=True)
class Override:
    """One ``key=value`` of the command line."""

    key: str
    text: str
    """The word that Hydra gets."""
    value: Any
    """None for a sweep."""
    group: bool
    delete: bool
    choices: tuple[str, ...] = ()
    """The values of a sweep."""
    typed: str | None = None
    """The value as it was typed; None where no value was."""

    @property
    def options(self) -> list[Any]:
        """The chosen options of a group."""
        return list(self.value) if isinstance(self.value, list) else [self.value]


def read(words: list[str], library: Library, sweep: bool = False) -> list[Override]:
    """The overrides, each with the sign that Hydra needs to accept it.

    The sign before a key (``+``, ``++`` or none) says whether the key is there already. Groups get
    the sign that Hydra needs, values get ``++``: the validator reports keys that do not exist,
    together with all other problems. A word that names a component replaces the one that was there.
    It is applied first, whatever the order, so that ``schedule=linear schedule.floor=0.2`` sets a
    field of the new one. Raises SpecError.
    """
    components: list[Override] = []
    others: list[Override] = []
    problems: list[Problem] = []
    for word in words:
        found = _read_word(word, library, sweep)
        if isinstance(found, Problem):
            problems.append(found)
        elif len(found) > 1:
            components += found
        else:
            others += found
    others, repeated = _once(others)
    if problems := [*problems, *repeated]:
        raise SpecError(problems)
    return components + others


def _read_word(word: str, library: Library, sweep: bool) -> list[Override] | Problem:
    """The override of one word, or two overrides where it names a component."""
    head, given, typed = word.partition("=")
    key = head.lstrip("+~")
    text = quoting.with_line_breaks(typed)
    if given and BRACKETED.fullmatch(text):
        text = f"'{text}'"
    parsed = _parsed(key, head + given + text, typed)
    if isinstance(parsed, Problem):
        return parsed
    swept = parsed.is_sweep_override()
    value = None if swept else parsed.value()
    group = library.is_group(key) and not isinstance(value, dict)
    if problem := _several(key, typed, group, swept and not sweep, value):
        return problem
    delete = parsed.is_delete()
    if not (group or delete) and _names_component(key, value):
        component = {TARGET: value}
        return [
            Override(key, f"++{key}=null", None, group=False, delete=False),
            Override(key, f"++{key}={{{TARGET}: {value}}}", component, False, False, typed=typed),
        ]
    return [
        Override(
            key=key,
            text=_sign(key, group, delete) + (f"{key}={text}" if given else key),
            value=value,
            group=group,
            delete=delete,
            choices=tuple(parsed.sweep_string_iterator()) if swept else (),
            typed=typed if given else None,
        )
    ]


def _sign(key: str, group: bool, delete: bool) -> str:
    """The sign that Hydra needs before a key."""
    if delete:
        return "~"
    if of_hydra(key):
        return ""
    if group:
        return "" if key in IN_ROOT or "@" in key else "+"
    return "++"


def of_hydra(key: str) -> bool:
    """Whether a key is one of Hydra's own settings."""
    return re.match(r"hydra([./@]|$)", key) is not None


def _parsed(key: str, word: str, typed: str) -> Any:
    """The word as Hydra reads it, or the Problem because of which it cannot be read."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()

    def read(word: str) -> Any:
        try:
            found = parser.parse_override(word)
            if not found.is_sweep_override():
                found.value()
        # from Hydra's functions, from numbers that are too long, from endless nesting
        except (HydraException, ValueError, TypeError, RecursionError):
            return None
        return found

    if key and (found := read(word)):
        return found
    if not key or read(f"{key}=1") is None:
        return Problem(
            key or word, typed or ABSENT, "is not a key of letters, digits, '_' and dots",
            "give <key>=<value>, e.g. training.steps=5",
        )  # fmt: skip
    why = quoting.unreadable(typed)
    return Problem(key, typed, f"cannot be read: {why}", f"quote it: {quoting.quoted(key, typed)}")


def _several(key: str, typed: str, group: bool, swept: bool, value: Any) -> Problem | None:
    """The problem with several values where one value is expected."""
    if swept:
        together = "" if group and key in ALONE else f", or together as a list: {key}=[{typed}]"
        return Problem(key, typed, "is several values", f"add -m to run each of them{together}")
    if not group or not isinstance(value, list):
        return None
    options = [option for option in value if isinstance(option, str)]
    if key in ALONE:
        return Problem(
            key, typed, SEVERAL,
            f"give {key}={options[0] if options else '<option>'}, or "
            f"-m {key}={','.join(options) or '<option>,<option>'} for a run with each",
        )  # fmt: skip
    if len(options) < len(value) or not value:
        return Problem(
            key, typed, "is not a list of options", f"give {key}=[<option>,<option>]"
        )  # fmt: skip
    return None


def _once(overrides: list[Override]) -> tuple[list[Override], list[Problem]]:
    """Groups that were given more than once: the last one counts, or all where a run can have
    several."""
    kept: dict[Any, Override] = {}
    problems = []
    for number, override in enumerate(overrides):
        simple = override.group and not (override.delete or override.choices)
        at: Any = override.key if simple else number
        before = kept.pop(at, None)
        if before is None or override.key in IN_ROOT:
            kept[at] = override
        elif override.key in TOGETHER:
            both = [*before.options, *override.options]
            kept[at] = replace(
                override, value=both, text=f"+{override.key}=[{','.join(map(str, both))}]"
            )
        else:
            kept[at] = before
            problems.append(
                Problem(
                    override.key, override.typed, f"is given twice; the other is {before.typed}",
                    "leave one of them out",
                )
            )  # fmt: skip
    return list(kept.values()), problems


def _names_component(key: str, value: Any) -> bool:
    name = isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w.]*", value)
    return bool(name) and role_at(key) is not None


def line_breaks_not_meant(overrides: list[Override]) -> Iterator[str]:
    """Notes about values that hold a backslash and an ``n`` where a line break may have been
    meant."""
    for override in overrides:
        if override.typed and not override.group and quoting.plain_escape(override.typed):
            yield (
                f"{override.key}={override.typed}: the \\n in it is a backslash and an n; between "
                "double quotes, as in 'stop=[\"\\n\"]', it is a line break"
            )
