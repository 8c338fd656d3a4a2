"""The defaults of the spec's keys."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from easyllm.spec.problems import ABSENT
from easyllm.spec.roles import Component
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import (
    MISSING,
    TARGET,
    Resolve,
    alone,
    hints,
    is_group,
    is_required,
    target_of,
    write,
)


def default(spec: Any, key: str) -> Any:
    """The default of the field at a dotted key of ``spec``, as plain data.

    ABSENT where there is no such field, as in a map by name, or where it must be given. A file
    that was written before a field existed means that field's default.
    """
    *parents, name = key.split(".")
    if name == TARGET and parents:
        # the class that is used where none is named
        *parents, name = parents
        field = _field(_at(spec, parents), name)
        return ABSENT if field is None else field.metadata.get("target", ABSENT)
    field = _field(_at(spec, parents), name)
    if field is None:
        return ABSENT
    if field.default is not dataclasses.MISSING:
        return write(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return write(field.default_factory())
    return ABSENT


def filled(config: Mapping[str, Any], resolve: Resolve, cls: type = RunSpec) -> dict[str, Any]:
    """``config`` with every key that it does not give: its default, or ``???`` where it has none.

    Values are kept as they are, interpolations too. Raises UnknownComponent for a ``_target_``
    that names nothing.
    """
    found: dict[str, Any] = {}
    if issubclass(cls, Component):
        found[TARGET] = target_of(cls)
    for field in dataclasses.fields(cls):
        target = field.metadata.get("target")
        hint = alone(hints(cls)[field.name])
        if field.name in config:
            found[field.name] = _filled(config[field.name], hint, target, resolve)
        elif target is not None or is_group(hint):
            found[field.name] = _filled({}, hint, target, resolve)
        elif is_required(field):
            found[field.name] = MISSING
        elif field.default is not dataclasses.MISSING:
            found[field.name] = write(field.default)
        else:
            found[field.name] = write(field.default_factory())  # type: ignore[operator]
    return found


def _filled(value: Any, hint: Any, target: str | None, resolve: Resolve) -> Any:
    if typing.get_origin(hint) is dict and isinstance(value, Mapping):
        item = alone(typing.get_args(hint)[1])
        return {name: _filled(one, item, None, resolve) for name, one in value.items()}
    if not isinstance(hint, type):
        return value
    if issubclass(hint, Component):
        value = {TARGET: value} if isinstance(value, str) and "$" not in value else value
        if not isinstance(value, Mapping):
            return value
        name = value.get(TARGET, target)
        if not isinstance(name, str) or name == MISSING or "$" in name:
            return value
        return filled(value, resolve, resolve(name, hint))
    return filled(value, resolve, hint) if is_group(hint) and isinstance(value, Mapping) else value


def _at(spec: Any, names: list[str]) -> Any:
    for name in names:
        spec = spec.get(name) if isinstance(spec, Mapping) else getattr(spec, name, None)
    return spec


def _field(part: Any, name: str) -> dataclasses.Field[Any] | None:
    if not dataclasses.is_dataclass(part):
        return None
    return next((f for f in dataclasses.fields(part) if f.name == name), None)
