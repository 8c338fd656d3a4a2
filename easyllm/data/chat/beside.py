"""What a record holds besides its conversation: tools, a system prompt, options.

A record may have any other keys, as data sets carry ids, sources and scores. The keys below
have a meaning for a chat: each is used, or the record is refused and the error names the key.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from easyllm.data.chat import messages as chat
from easyllm.data.chat.tools import tools
from easyllm.data.chat.values import is_empty, kind, shown, unicode
from easyllm.errors import BadRecord

SYSTEM = ("system", "system_prompt")
"""Keys of the system prompt, which comes before the conversation."""

TOOLS = ("tools", "functions")
"""Keys of what the assistant may call; OpenAI's older name comes second."""

DEFAULTS: Mapping[str, tuple[Any, ...]] = {
    "tool_choice": ("auto",),
    "function_call": ("auto",),
    "response_format": ({"type": "text"},),
    "chat_template_kwargs": (),
    "enable_thinking": (),
    "reasoning_effort": (),
    "documents": (),
    "images": (),
    "videos": (),
    "audios": (),
}
"""Options of a chat that are not supported, with their values that change nothing. With other
values the assistant would have been asked for something else than it is trained on."""

KEYS = (*SYSTEM, *TOOLS, *DEFAULTS, "parallel_tool_calls")
"""Keys of a record that are read besides its conversation."""


def conversation(
    turns: Any, record: Mapping[str, Any], ignored: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """The messages of a record as ``chat.messages`` gives them, ``tools`` on the first.

    Keys of the record and of its messages that are ``ignored`` are skipped. Raises
    BadRecord.
    """
    try:
        return _conversation(turns, record, ignored)
    except RecursionError:
        raise BadRecord("the record is nested too deeply") from None


def _conversation(
    turns: Any, record: Mapping[str, Any], ignored: Collection[str] | None
) -> list[dict[str, Any]]:
    made = chat.conversation(turns, ignored)
    found = {
        key: record[key]
        for key in KEYS
        if key not in (ignored or ()) and not is_empty(record.get(key))
    }
    remedy = "" if ignored is None else ", or name it in the reader's ignored_keys"
    for key, value in found.items():
        if key in DEFAULTS and value not in DEFAULTS[key]:
            raise BadRecord(
                f"the record has {key!r} = {shown(value)}, which is not supported; remove "
                f"it{remedy}"
            )
    made = [*_system(found, made), *made]
    listed = _tools(found)
    if listed:
        made[0]["tools"] = listed
    _in_parallel(found.get("parallel_tool_calls"), made)
    return made


def _system(found: Mapping[str, Any], made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The system message that the record gives, where the conversation does not have it."""
    given = {key: found[key] for key in SYSTEM if key in found}
    for key, value in given.items():
        if not isinstance(value, str):
            raise BadRecord(f"{key!r} is {kind(value)}, {shown(value)}, not a text")
    said = [made[0]["content"]] if made[0]["role"] == "system" else []
    if len({*given.values(), *said}) > 1:
        where = [*map(repr, given), *(["its first message"] if said else [])]
        raise BadRecord(f"the record has different system prompts in {' and '.join(where)}")
    if said or not given:
        return []
    key, text = next(iter(given.items()))
    return [{"role": "system", "content": unicode(text, repr(key))}]


def _tools(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    given = [made for key in TOOLS if (made := tools(found.get(key), key))]
    if len(given) > 1 and given[0] != given[1]:
        raise BadRecord("the record has different tools in 'tools' and 'functions'")
    return given[0] if given else []


def _in_parallel(allowed: Any, made: list[dict[str, Any]]) -> None:
    """No template shows this option to the model, so the answers must comply with it."""
    if allowed is None or allowed is True:
        return
    if allowed is not False:
        raise BadRecord(f"'parallel_tool_calls' is {kind(allowed)}, not true or false")
    for number, message in enumerate(made, 1):
        if len(message.get("tool_calls", ())) > 1:
            raise BadRecord(
                f"message {number} calls {len(message['tool_calls'])} tools at once, and the "
                "record has 'parallel_tool_calls' = false"
            )
