"""The reference of every key, from the dataclasses of the spec and their field docstrings."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import re
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from easyllm.components import shipped
from easyllm.spec import roles
from easyllm.spec.roles import Component
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import hints, target_of
from easyllm.spec.types import Location, named

INTRODUCTION = """\
# Every key

Each key of a spec with its type, its default and its meaning. This page is generated from the
dataclasses in `easyllm/spec` and from the shipped components, and their docstrings.

A key of the type *component* takes the bare name of a shipped class or a `_target_`, and the keys
of that class below it: `training.schedule=linear training.schedule.floor=0.2`. The classes of
each role are listed after the keys of the spec.
"""


def page() -> str:
    """The page as Markdown."""
    return "\n".join([INTRODUCTION, *_section(RunSpec, ""), *_roles()]) + "\n"


def _section(cls: type, prefix: str) -> Iterator[str]:
    """The keys of a dataclass of the spec that stands at ``prefix``, and of those below it."""
    yield f"## `{prefix}`\n" if prefix else "## The run\n"
    yield f"{_class_text(cls)}\n"
    below = []
    for field in dataclasses.fields(cls):
        key, hint = f"{prefix}.{field.name}".lstrip("."), hints(cls)[field.name]
        if inner := group_of(hint):
            below.append((inner, key))
        if inner is None or type(None) in typing.get_args(hint):
            yield _entry(cls, field, key)
        if typing.get_origin(hint) is dict and (item := group_of(typing.get_args(hint)[1])):
            below.append((item, f"{key}.NAME"))
    for inner, key in below:
        yield from _section(inner, key)


def _roles() -> Iterator[str]:
    for name in roles.__all__:
        role = getattr(roles, name)
        if not (inspect.isclass(role) and issubclass(role, Component)) or role is Component:
            continue
        yield f"## {name}: components\n"
        yield f"{_class_text(role)}\n" if _class_text(role) else ""
        own = {field.name: field.default for field in dataclasses.fields(role)}
        yield "Keys of all of them:\n" if own else ""
        yield from (_entry(role, field, field.name) for field in dataclasses.fields(role))
        for cls in shipped(role):
            yield f"### {cls.__name__}\n\n`_target_: {target_of(cls)}`\n\n{_class_text(cls)}\n"
            for field in dataclasses.fields(cls):
                if field.name not in own or field.default != own[field.name]:
                    yield _entry(cls, field, field.name)


def _entry(cls: type, field: dataclasses.Field[Any], key: str) -> str:
    """A key as an item of a definition list."""
    hint = hints(cls)[field.name]
    parts = [f"{_type(hint)}; {_default(field)}"]
    if text := docstrings(cls).get(field.name, ""):
        parts += ["", *text.splitlines()]
    return f"`{key}`\n: " + "\n  ".join(parts).replace("\n  \n", "\n\n") + "\n"


def _type(hint: Any) -> str:
    """A type in words."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        arms = [_type(arm) for arm in typing.get_args(hint) if arm is not type(None)]
        return " or ".join(arms + ["null"] * (type(None) in typing.get_args(hint)))
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(f"`{choice}`" for choice in typing.get_args(hint))
    if typing.get_origin(hint) is dict:
        item = typing.get_args(hint)[1]
        return "a map by name" if item is Any else f"a map by name, each {_type(item)}"
    if typing.get_origin(hint) is tuple:
        return f"a list, each {_type(typing.get_args(hint)[0])}"
    if inspect.isclass(hint) and issubclass(hint, Component):
        return f"component, {hint.__name__}"
    if any(isinstance(mark, Location) for mark in getattr(hint, "__metadata__", ())):
        return "a path"
    return "a map of keys" if dataclasses.is_dataclass(hint) else named(hint)


def _default(field: dataclasses.Field[Any]) -> str:
    if target := field.metadata.get("target"):
        return f"default `{target.rpartition('.')[2]}`"
    if field.default is not dataclasses.MISSING:
        return f"default `{json.dumps(field.default)}`"
    if field.default_factory is not dataclasses.MISSING:
        return "default empty"
    return "must be given"


def group_of(hint: Any) -> Any:
    """The dataclass of the spec, not a component, that ``hint`` or ``hint | None`` is."""
    for arm in (hint, *typing.get_args(hint)):
        if inspect.isclass(arm) and dataclasses.is_dataclass(arm):
            return None if issubclass(arm, Component) else arm
    return None


def _class_text(cls: type) -> str:
    """The class's own docstring; dataclasses write one where there is none."""
    text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    return "" if text.startswith(f"{cls.__name__}(") else _markdown(text)


def _markdown(text: str) -> str:
    """A docstring as Markdown: outside code ``<`` would begin an element of HTML."""
    return re.sub(r"(?s)(``.*?``)|<", lambda found: found[1] or "&lt;", text)


@functools.cache
def docstrings(cls: type) -> dict[str, str]:
    """The docstrings of a class's fields by name, those of its bases included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        if base.__module__.startswith("easyllm."):
            (tree,) = ast.parse(inspect.getsource(base)).body
            assert isinstance(tree, ast.ClassDef)
            for node, after in zip(tree.body, tree.body[1:], strict=False):
                if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr):
                    text = getattr(after.value, "value", None)
                    if isinstance(node.target, ast.Name) and isinstance(text, str):
                        found[node.target.id] = _markdown(inspect.cleandoc(text))
    return found
