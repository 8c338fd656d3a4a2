"""Tools and their calls, in the one form that chat templates are written for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from easyllm.data.chat.values import is_empty, json_value, kind, parsed, shown
from easyllm.errors import BadRecord


def tools(value: Any, key: str = "tools") -> list[dict[str, Any]]:
    """Tools as ``{"type": "function", "function": {"name", …}}``.

    ``value`` is a list of them, or only of their functions, or JSON text of such a list.
    Raises BadRecord, naming the tool.
    """
    if isinstance(value, str):
        value = _json(value, repr(key)) if value.strip() else []
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise BadRecord(f"{key!r} is {kind(value)}, not a list of tools")
    return [_tool(tool, f"tool {number} of {key!r}") for number, tool in enumerate(value, 1)]


def _tool(tool: Any, what: str) -> dict[str, Any]:
    if isinstance(tool, str):
        tool = _json(tool, what)
    if not isinstance(tool, Mapping):
        raise BadRecord(f"{what} is {kind(tool)}, not an object")
    json_value(tool, what)
    if tool.get("type") not in (None, "function"):
        raise BadRecord(f"{what} is of the type {shown(tool['type'])}; only functions are known")
    function = tool.get("function")
    if function is None:  # the function alone, as in OpenAI's "functions", or with its type
        function = {key: value for key, value in tool.items() if key != "type"}
    elif not isinstance(function, Mapping):
        raise BadRecord(f"'function' of {what} is {kind(function)}, not an object")
    else:
        _nothing_else(tool, ("type", "function", "id"), what)
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRecord(f"{what} has no name")
    return {"type": "function", "function": dict(function)}


def calls(value: Any, key: str = "tool_calls") -> list[dict[str, Any]]:
    """Calls as ``{"type": "function", "function": {"name", "arguments"}}``, ``id`` kept.

    Arguments given as JSON text, OpenAI's own form, become the object that they spell: a
    template that writes an object as JSON would escape the text a second time. ``value`` is
    a list of calls. Raises BadRecord, naming the call.
    """
    if isinstance(value, str):
        value = _json(value, repr(key)) if value.strip() else []
    if not isinstance(value, list | tuple):
        raise BadRecord(f"{key!r} is {kind(value)}, not a list of calls")
    return [_call(call, f"call {number} of {key!r}") for number, call in enumerate(value, 1)]


def call_in(text: str, key: str) -> list[dict[str, Any]]:
    """The calls that a message's text spells: JSON of a call, or of a list of calls."""
    found = _json(text, repr(key))
    return calls(found if isinstance(found, list) else [found], key)


def _call(call: Any, what: str) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise BadRecord(f"{what} is {kind(call)}, not an object")
    if call.get("type") not in (None, "function"):
        raise BadRecord(f"{what} is of the type {shown(call['type'])}; only functions are known")
    function = call.get("function")
    if function is None:  # without the object around it
        function = {key: value for key, value in call.items() if key not in ("type", "id", "index")}
    elif not isinstance(function, Mapping):
        raise BadRecord(f"'function' of {what} is {kind(function)}, not an object")
    else:
        _nothing_else(call, ("type", "function", "id", "index"), what)
    _nothing_else(function, ("name", "arguments"), what)
    name, id_ = function.get("name"), call.get("id")
    if not isinstance(name, str) or not name:
        raise BadRecord(f"{what} has no name")
    json_value(name, f"the name of {what}")
    made: dict[str, Any] = {}  # its keys in OpenAI's order, in which a template may write them
    if not is_empty(id_):
        if not isinstance(id_, str):
            raise BadRecord(f"the id of {what} is {kind(id_)}, {shown(id_)}, not a text")
        made["id"] = json_value(id_, f"the id of {what}")
    made["type"] = "function"
    made["function"] = {"name": name, "arguments": _arguments(function.get("arguments"), what)}
    return made


def _arguments(value: Any, what: str) -> dict[str, Any]:
    """An object; no arguments, as null or an empty text, are an empty one."""
    if isinstance(value, str):
        text = value
        value = _json(text, f"'arguments' of {what}") if text.strip() else {}
        if not isinstance(value, Mapping):
            raise BadRecord(
                f"'arguments' of {what} spells {kind(value)}, {shown(value)}, not an object"
            )
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise BadRecord(f"'arguments' of {what} is {kind(value)}, {shown(value)}, not an object")
    return dict(json_value(value, f"'arguments' of {what}"))


def _nothing_else(found: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    for key, value in found.items():
        if key not in known and not is_empty(value):
            raise BadRecord(f"{what} has the key {key!r} = {shown(value)}, which no template reads")


def _json(text: str, what: str) -> Any:
    try:
        return parsed(text)
    except BadRecord as error:
        raise BadRecord(f"{what} is {error}: {shown(text)}") from None
