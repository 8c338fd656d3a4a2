"""What a key of the spec says where it is not given."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from easyllm.spec.problems import ABSENT
from easyllm.spec.schema import TARGET, write


def default(spec: Any, key: str) -> Any:
    """The default of the field at a dotted key of ``spec``, as plain data.

    ABSENT where no field stands there, as in a map by name, or where it must be given. What was
    written down before a field existed says its default.
    """
    *parents, name = key.split(".")
    if name == TARGET and parents:
        # the class that is taken where none is named
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


def _at(spec: Any, names: list[str]) -> Any:
    for name in names:
        spec = spec.get(name) if isinstance(spec, Mapping) else getattr(spec, name, None)
    return spec


def _field(part: Any, name: str) -> dataclasses.Field[Any] | None:
    if not dataclasses.is_dataclass(part):
        return None
    return next((f for f in dataclasses.fields(part) if f.name == name), None)
