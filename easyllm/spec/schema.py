"""The one walk between plain configuration and the typed spec, both ways.

``read`` turns nested dicts into a ``RunSpec`` and collects every problem on the way:
unknown keys, wrong types, values out of range, components that may not be named.
The parent process, every rank and every reader of a ``run.yaml`` use it. ``write`` is its inverse.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from easyllm.spec import renamed, texts
from easyllm.spec.problems import ABSENT, REQUIRED, TEXT, UNKNOWN, Problem, dotted, near
from easyllm.spec.roles import Component
from easyllm.spec.run import RunSpec
from easyllm.spec.types import Location, Range, Time, named

TARGET = "_target_"
MISSING = "???"
LARGEST = 2**63 - 1
"""The largest whole number that torch, numpy and files take."""

Resolve = Callable[[str, type[Component]], type[Component]]
"""Gives the class behind a ``_target_``, ``module.Class`` or the bare name of a shipped class,
or raises ``UnknownComponent``."""


class UnknownComponent(Exception):
    """A ``_target_`` that names nothing usable."""

    def __init__(self, message: str, remedy: str = ""):
        super().__init__(message)
        self.remedy = remedy


def read(config: Mapping[str, Any], resolve: Resolve) -> tuple[RunSpec, list[Problem]]:
    """The spec that ``config`` describes and every problem in it.

    A value with a problem is replaced by its default, so that the spec is always complete
    and later checks can run. The caller must not use it for a run while there are problems.
    """
    walk = _Walk(resolve)
    spec = walk.dataclass(RunSpec, config, "")
    return spec, walk.finish()


def read_group(cls: type, config: Mapping[str, Any]) -> tuple[Any, list[Problem]]:
    """As ``read``, but for one dataclass of a spec, which has no components."""

    def resolve(target: str, role: type[Component]) -> type[Component]:
        raise UnknownComponent(f"{cls.__name__} has no components")

    walk = _Walk(resolve)
    group = walk.dataclass(cls, config, "")
    return group, walk.finish()


def write(spec: Any) -> Any:
    """Plain dicts, lists and scalars from which ``read`` makes ``spec`` again."""
    if isinstance(spec, Component) or dataclasses.is_dataclass(spec):
        plain = {f.name: write(getattr(spec, f.name)) for f in dataclasses.fields(spec)}
        if isinstance(spec, Component):
            return {TARGET: target_of(type(spec)), **plain}
        return plain
    if isinstance(spec, Mapping):
        return {key: write(value) for key, value in spec.items()}
    if isinstance(spec, list | tuple):
        return [write(value) for value in spec]
    return spec


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of a plain tree by dotted key; an empty map or list is a leaf."""
    if isinstance(config, Mapping) and config:
        leaves: dict[str, Any] = {}
        for key, value in config.items():
            leaves |= flatten(value, dotted(prefix, key))
        return leaves
    return {prefix: config}


def target_of(cls: type) -> str:
    """The ``_target_`` that names a component class."""
    return f"{cls.__module__}.{cls.__qualname__}"


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def role_at(key: str) -> type[Component] | None:
    """The role of the component at a dotted key of a spec, or None where there is none."""
    hint: Any = RunSpec
    for name in key.split("."):
        if typing.get_origin(hint) is dict:
            hint = alone(typing.get_args(hint)[1])
        elif is_group(hint):
            hint = alone(hints(hint).get(name))
        else:
            return None
    return hint if isinstance(hint, type) and issubclass(hint, Component) else None


def alone(hint: Any) -> Any:
    """``X`` of ``X | None``; any other type as it is."""
    arms = [arm for arm in typing.get_args(hint) if arm is not type(None)]
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return arms[0] if union and len(arms) == 1 else hint


class _Bad:
    """A value that could not be read; its problem is already noted."""


BAD: Any = _Bad()


class _Walk:
    def __init__(self, resolve: Resolve):
        self.resolve = resolve
        self.problems: list[Problem] = []
        self.unknown: list[tuple[Problem, list[str]]] = []
        self.known: set[str] = set()

    def finish(self) -> list[Problem]:
        """All problems; those of unknown keys name the key that was probably meant."""
        for problem, siblings in self.unknown:
            parent, _, name = problem.key.rpartition(".")
            remedy = near(name, siblings, under=parent)
            elsewhere = sorted(k for k in self.known if k.rpartition(".")[2] == name)
            if elsewhere:
                remedy = f"did you mean {elsewhere[0]}?"
            elif not remedy and siblings:
                shown = ", ".join(sorted(siblings))
                remedy = f"{parent or 'the spec'} has: {shown}"
            elif not remedy:
                remedy = f"{parent} has no keys; leave it out"
            self.problems.append(dataclasses.replace(problem, remedy=problem.remedy or remedy))
        return self.problems

    def note(self, key: str, value: Any, message: str, remedy: str = "") -> Any:
        self.problems.append(Problem(key, value, message, remedy))
        return BAD

    def dataclass(self, cls: type, config: Any, key: str) -> Any:
        if not isinstance(config, Mapping):
            self.note(key, config, "must be a map of keys", f"give {key}.<key>=<value>")
            config = {}
        fields = {f.name: f for f in dataclasses.fields(cls)}
        types_ = hints(cls)
        values: dict[str, Any] = {}
        for name, value in config.items():
            if name == TARGET and issubclass(cls, Component):
                continue
            if name not in fields:
                self._unknown(dotted(key, name), value, list(fields))
        for name, field in fields.items():
            at = f"{key}.{name}" if key else name
            self.known.add(at)
            value = config.get(name, ABSENT)
            target = field.metadata.get("target")
            if value is ABSENT and is_group(types_[name]):
                value = {}  # its own fields may have components by default
            if value is ABSENT and target is None:
                if is_required(field):
                    values[name] = self.note(at, ABSENT, REQUIRED, f"give {at}=<value>")
                continue
            if target is not None:
                value = {} if value is ABSENT else value
                values[name] = self.component(types_[name], value, at, target)
                continue
            values[name] = self.value(types_[name], value, at)
        whole = {name: value for name, value in values.items() if value is not BAD}
        if any(is_required(f) and f.name not in whole for f in fields.values()):
            return BAD
        return cls(**whole)

    def _unknown(self, key: str, value: Any, siblings: list[str]) -> None:
        if key == "recipe" and isinstance(value, Mapping | list):
            problem = Problem(
                key,
                ABSENT,
                "a recipe's keys must be at the top of the spec",
                "begin the recipe file with the line '# @package _global_'",
            )
        elif now := renamed.KEYS.get(key):
            problem = Problem(key, value, f"is now called {now}", f"give {now} instead")
        else:
            problem = Problem(key, value, UNKNOWN, remedy="")  # completed in finish()
        self.unknown.append((problem, siblings))

    def component(self, role: Any, config: Any, key: str, default: str | None) -> Any:
        """The component in ``config``; the default, if any, where it has a problem."""
        built = self._component(role, config, key, default)
        if built is BAD and default is not None:
            return _Walk(self.resolve).dataclass(self.resolve(default, role), {}, key)
        return built

    def _component(self, role: Any, config: Any, key: str, default: str | None) -> Any:
        if isinstance(config, str):
            config = {TARGET: config}
        if not isinstance(config, Mapping):
            return self.note(
                key, config, "must be a component", f"give {key}=<class>, and {key}.<field>=<value>"
            )
        target = config.get(TARGET, default)
        if not isinstance(target, str) or target == MISSING:
            return self.note(
                f"{key}.{TARGET}",
                ABSENT if target is None else target,
                f"must name a {role.__name__} class",
                f"give {key}.{TARGET}=<module>.<class>",
            )
        try:
            cls = self.resolve(target, role)
        except UnknownComponent as error:
            at = f"{key}.{TARGET}" if "." in target else key
            return self.note(at, target, str(error), error.remedy)
        return self.dataclass(cls, config, key)

    def value(self, hint: Any, value: Any, key: str) -> Any:
        """``value`` as ``hint``, or BAD with the problem noted."""
        if isinstance(value, str) and value == MISSING:
            if not is_group(hint):
                return self.note(key, ABSENT, REQUIRED, f"give {key}=<value>")
            self.note(key, ABSENT, REQUIRED, f"give {key}.<key>=<value>, or leave it out")
            return self.dataclass(hint, {}, key)
        origin = typing.get_origin(hint)
        if origin is typing.Annotated:
            base, *bounds = typing.get_args(hint)
            if isinstance(value, str) and any(isinstance(bound, Time) for bound in bounds):
                seconds = Time.seconds(value)
                if not seconds:
                    return self.note(
                        key, value, "must be a length of time", f"give {key}=90m, 2h or 1d12h"
                    )
                value = value if base is str else seconds
            found = self.value(base, value, key)
            located = any(isinstance(bound, Location) for bound in bounds)
            if located and isinstance(found, str) and (why := texts.no_path(found)):
                return self.note(key, value, why, f"give {key}=<a path>")
            for bound in bounds:
                if found is not BAD and isinstance(bound, Range) and found not in bound:
                    return self.note(key, value, f"must be {bound}", f"give a value {bound}")
            return found
        if origin in (typing.Union, types.UnionType):
            return self._union(typing.get_args(hint), value, key)
        if hint is Any:
            why = texts.unusable(value)
            if why:
                return self.note(key, value, why, f"give another {key}")
            return texts.named(value)
        if is_group(hint):
            return self.dataclass(hint, value, key)
        if value is None:
            return self.note(key, value, f"must be {named(hint)}", "null is not allowed here")
        if origin is Literal:
            choices = typing.get_args(hint)
            if value in choices and not isinstance(value, bool):
                return choices[choices.index(value)]  # 1 for 1.0
            if now := renamed.VALUES.get((key, str(value))):
                return self.note(key, value, f"is now called {now}", f"give {key}={now}")
            meant = near(str(value), [str(c) for c in choices])
            remedy = f"one of {', '.join(map(str, choices))}" + (f"; {meant}" if meant else "")
            return self.note(key, value, "is not a choice", remedy)
        if origin is tuple:
            if not isinstance(value, list | tuple):
                return self.note(key, value, "must be a list", f"give {key}=[{value}]")
            item = typing.get_args(hint)[0]
            items = [self.value(item, v, f"{key}.{i}") for i, v in enumerate(value)]
            return BAD if BAD in items else tuple(items)
        if origin is dict:
            return self._map(typing.get_args(hint)[1], value, key)
        if isinstance(hint, type) and issubclass(hint, Component):
            return self.component(hint, value, key, None)
        return self._scalar(hint, value, key)

    def _union(self, arms: tuple[Any, ...], value: Any, key: str) -> Any:
        if value is None and type(None) in arms:
            return None
        arms = tuple(arm for arm in arms if arm is not type(None))
        maps = [arm for arm in arms if typing.get_origin(arm) is dict]
        if len(arms) > 1 and maps:
            arms = tuple(maps) if isinstance(value, Mapping) else tuple(set(arms) - set(maps))
        if len(arms) > 1:
            return self._either(arms, value, key)
        return self.value(arms[0], value, key)

    def _either(self, arms: tuple[Any, ...], value: Any, key: str) -> Any:
        """``value`` as the first of several scalar types that takes it."""
        for arm in arms:
            walk = _Walk(self.resolve)
            found = walk.value(arm, value, key)
            if not walk.problems:
                return found
        either = " or ".join(map(named, arms))
        return self.note(key, value, f"must be {either}", f"give {key}=<{either}>")

    def _map(self, item: Any, value: Any, key: str) -> Any:
        if not isinstance(value, Mapping):
            return self.note(key, value, "must be a map by name", f"give {key}.<name>=<value>")
        for name in value:
            if why := texts.unusable(str(name)):
                return self.note(key, name, f"a name in it {why}", f"give {key}.<name>=<value>")
        found = {str(k): self.value(item, v, dotted(key, k)) for k, v in value.items()}
        return {k: v for k, v in found.items() if v is not BAD}

    def _scalar(self, hint: type, value: Any, key: str) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if hint is int and number and math.isfinite(value) and value == int(value):
            if abs(value) > LARGEST:
                return self.note(key, value, "is too large", f"give at most {LARGEST}")
            return int(value)
        if hint is float and number and abs(value) <= sys.float_info.max:
            return float(value)
        if hint is str and isinstance(value, str):
            why = texts.unusable(value)
            return self.note(key, value, why, f"give another {key}") if why else value
        if hint is bool and isinstance(value, bool):
            return value
        message, remedy = f"must be {named(hint)}", f"give {key}=<{named(hint)}>"
        if hint is str and not isinstance(value, Mapping | list):
            message, remedy = TEXT, f"quote it: {key}=\"'{value}'\""
        return self.note(key, value, message, remedy)


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether a field has no default."""
    return (
        field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
        and "target" not in field.metadata
    )


def is_group(hint: Any) -> bool:
    """Whether a type is a part of the spec that has its own keys and is not a component."""
    return dataclasses.is_dataclass(hint) and not issubclass(hint, Component)  # type: ignore[arg-type]
