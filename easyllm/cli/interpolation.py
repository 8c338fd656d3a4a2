"""Replaces ``${key}`` within values, or reports why that is not possible."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from easyllm.spec.problems import Problem, dotted, near
from easyllm.spec.schema import flatten

REFERENCE = re.compile(r"\$\{\s*([\w.\[\]-]+)\s*\}")
RESOLVER = re.compile(r"\$\{\s*([\w.]+)\s*:\s*([^}]*)\}")
ENVIRONMENT = "oc.env"
RESOLVERS = (ENVIRONMENT, "oc.select", "oc.decode", "oc.create", "oc.dict.keys", "oc.dict.values")


def resolved(config: dict[str, Any], found: list[Problem]) -> dict[str, Any]:
    """``config`` with its interpolations replaced. Problems with them are added to ``found``, and
    the values with problems are not changed."""
    if not _holds(config):
        return config
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    errors = (OmegaConfBaseException, RecursionError, ValueError, TypeError)

    def walk(plain: Any, node: Any, at: str) -> Any:
        if isinstance(plain, Mapping):
            return {k: one(v, node, k, dotted(at, k)) for k, v in plain.items()}
        return [one(v, node, number, f"{at}.{number}") for number, v in enumerate(plain)]

    def one(plain: Any, node: Any, name: Any, at: str) -> Any:
        if not _holds(plain) or at in wrong:
            return plain
        if isinstance(plain, Mapping | list):
            return walk(plain, node[name], at)
        try:
            value = node[name]
            return (
                OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            )
        except errors as error:
            found.append(_problem(at, plain, str(error), config))
            return plain

    wrong = set()
    for key, value in flatten(config).items():
        if isinstance(value, str) and "$" in value:
            try:
                OmegaConf.create({"value": value})
            except errors:
                wrong.add(key)
                found.append(
                    Problem(
                        key, value, "cannot be read between ${ and }",
                        "give ${<key>}, or \\${ for the characters themselves",
                    )
                )  # fmt: skip
    made: dict[str, Any] = walk(config, OmegaConf.create(_without(config, wrong)), "")
    return made


def _holds(plain: Any) -> bool:
    """Whether there is an interpolation, or an escaped one, in a plain value."""
    if isinstance(plain, Mapping):
        return any(map(_holds, plain.values()))
    if isinstance(plain, list):
        return any(map(_holds, plain))
    return isinstance(plain, str) and "${" in plain


def _without(plain: Any, keys: set[str], at: str = "") -> Any:
    """``plain`` with null for the values at ``keys``."""
    if at in keys:
        return None
    if isinstance(plain, Mapping):
        return {k: _without(v, keys, dotted(at, k)) for k, v in plain.items()}
    if isinstance(plain, list):
        return [_without(v, keys, f"{at}.{number}") for number, v in enumerate(plain)]
    return plain


def _problem(key: str, text: str, error: str, config: dict[str, Any]) -> Problem:
    itself = "\\${ is the characters themselves"
    if "Recursive" in error or "recursion" in error:
        return Problem(key, text, "refers to itself", f"give the value itself; {itself}")
    for name, rest in RESOLVER.findall(text):
        if name == ENVIRONMENT:
            variable = rest.partition(",")[0].strip()
            return Problem(
                key, text, f"the environment has no variable {variable}",
                f"set it, or give what to take without it: ${{{ENVIRONMENT}:{variable},<value>}}",
            )  # fmt: skip
        known = near(name, RESOLVERS)
        return Problem(
            key, text, f"{name} cannot be computed from {rest}" if name in RESOLVERS
            else f"there is no resolver {name}",
            f"{known} there are {', '.join(RESOLVERS)}; {itself}".strip(),
        )  # fmt: skip
    there = flatten(config)
    for name in REFERENCE.findall(text):
        if name not in there:
            known = near(name, there)
            return Problem(
                key, text, f"no key {name} is given",
                f"{known} give {name}=<value>, or name a key that is given; {itself}".strip(),
            )  # fmt: skip
    return Problem(key, text, "cannot be computed", f"name keys that are given; {itself}")
