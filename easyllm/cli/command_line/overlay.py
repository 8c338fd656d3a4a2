"""Applies values of the command line to a plain configuration, as Hydra's ``++`` and ``~`` do."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from easyllm.cli.command_line.overrides import Override
from easyllm.spec import texts
from easyllm.spec.problems import ABSENT, Problem, near

GONE: Any = object()


def lay(config: dict[str, Any], override: Override) -> Problem | None:
    """Change ``config`` as one word says, or return why that is not possible."""
    if texts.deep(override.value):
        key = override.key
        return Problem(key, override.typed or ABSENT, texts.DEEP, f"give another {key}")
    *parents, last = override.key.split(".")
    at: Any = config
    for depth, part in enumerate(parents):
        below = _get(at, part)
        if not isinstance(below, dict | list):
            if override.delete:
                return _absent(config, override)
            if isinstance(at, list):
                return _outside(override, ".".join(parents[:depth]), at)
            below = at[part] = {}
        at = below
    if override.delete:
        return _delete(config, at, last, override)
    value = texts.named(override.value)
    if isinstance(at, list):
        if _get(at, last) is GONE:
            return _outside(override, ".".join(parents), at)
        at[int(last)] = copy.deepcopy(value)
    else:
        at[last] = _merged(at.get(last), value)
    return None


def tree(override: Override) -> Any:
    """The configuration that a word adds."""
    laid = override.value
    for name in reversed(override.key.split(".")):
        laid = {name: laid}
    return laid


def has(config: Any, key: str) -> bool:
    """Whether a dotted key has a value."""
    for part in key.split("."):
        config = _get(config, part)
    return config is not GONE


def _get(at: Any, part: str) -> Any:
    if isinstance(at, list):
        return at[int(part)] if part.isdecimal() and int(part) < len(at) else GONE
    return at.get(part, GONE) if isinstance(at, dict) else GONE


def _merged(old: Any, new: Any) -> Any:
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return copy.deepcopy(new)
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


def _delete(config: dict[str, Any], at: Any, last: str, override: Override) -> Problem | None:
    found = _get(at, last)
    if found is GONE:
        return _absent(config, override)
    if override.typed and override.value != found:
        return Problem(
            f"~{override.key}",
            override.typed,
            f"{override.key} is {found}",
            f"give ~{override.key}",
        )
    del at[int(last) if isinstance(at, list) else last]
    return None


def _absent(config: dict[str, Any], override: Override) -> Problem:
    parts = override.key.split(".")
    at: Any = config
    for part in parts[:-1]:
        at = _get(at, part)
    siblings = list(map(str, at)) if isinstance(at, dict) else []
    parent = ".".join(parts[:-1])
    meant = near(parts[-1], siblings, under=f"~{parent}" if parent else "")
    if meant and not parent:
        meant = meant.replace("mean ", "mean ~")
    return Problem(
        f"~{override.key}", override.typed or ABSENT, "removes a key that no file gives",
        meant or f"leave it out; to set the key, give {override.key}=<value>",
    )  # fmt: skip


def _outside(override: Override, key: str, at: list[Any]) -> Problem:
    return Problem(
        override.key, override.typed or ABSENT, f"{key} is a list of {len(at)}",
        f"give the whole list: {key}=[<value>,<value>]",
    )  # fmt: skip
