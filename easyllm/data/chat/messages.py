"""Converts messages of conversations from the shapes that people publish to one shape.

Training, batch inference and the server all take a conversation through ``conversation``, so
that a model is asked in the form in which it was trained. A message is then::

    {"role": "system" | "user" | "assistant" | "tool",
     "content": str,
     "reasoning_content": str,            # of an assistant that reasons before it answers
     "tool_calls": [{"type": "function", "id": str,
                     "function": {"name": str, "arguments": {…}}}],
     "tool_call_id": str, "name": str,
     "train": False,                      # an answer that is not to be trained
     "tools": [{"type": "function", "function": {…}}]}   # on the first message

Only ``role`` and ``content`` are always there; ``id`` of a call may be absent. Any other key of
a message is used, is one of ``HARMLESS`` or is empty; otherwise the message is refused and the
error names the key. So training loses nothing of what was given.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from easyllm.data.chat.tools import call_in, calls
from easyllm.data.chat.values import is_empty, kind, shown, unicode
from easyllm.errors import BadRecord


class BadMessage(BadRecord):
    """A message of a conversation that cannot be used: its place from 1, and why."""

    def __init__(self, number: int, reason: str):
        super().__init__(f"message {number}: {reason}")
        self.number, self.reason = number, reason


ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
}
"""Names of speakers in published data, whatever their case, and the roles of chat templates."""

CALLERS = ("function_call", "tool_call")
"""Speakers whose text is the JSON of a call, as LLaMA-Factory and ms-swift write them."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys of an assistant's thoughts; also the types of parts of a content that hold them."""

TRAINED = ("train", "training", "loss", "weight", "loss_scale")
"""Keys that say, by true and false or 1 and 0, whether an answer is trained: OpenAI and
Mistral call it ``weight``, axolotl ``train``, ``training`` and ``weight``, xtuner and ms-swift
``loss``, ms-swift ``loss_scale`` too."""

MASKED = ("masked",)
"""Keys that mean the opposite, as torchtune's."""

HARMLESS = frozenset(
    {
        *("id", "uuid", "message_id", "msg_id", "parent", "parent_id", "openai_id"),
        *("index", "idx", "turn", "turn_id", "turn_identifier", "position", "rank"),
        *("time", "timestamp", "date", "created", "created_at", "created_date", "create_time"),
        *("update_time", "updated_at", "source", "origin", "url", "dataset", "model"),
        *("model_name", "author", "user_id", "language", "lang", "country", "hashed_ip", "header"),
        *("state", "redacted", "toxic", "toxicity", "detoxify", "score", "scores", "rating"),
        *("quality", "category", "topic", "tags", "labels", "emojis", "review_count"),
        *("review_result", "synthetic", "tree_state", "metadata", "meta"),
        *("tokens", "num_tokens", "token_count", "length", "usage", "latency", "logprobs"),
        *("finish_reason", "stop_reason", "annotations", "citations", "cache_control"),
    }
)
"""Keys of a message, or of a part of its content, that hold nothing to train: where it comes
from, when it was written, how it was rated."""

PART_HARMLESS = HARMLESS | {"type", "signature"}


def conversation(turns: Any, ignored: Collection[str] | None = None) -> list[dict[str, Any]]:
    """The messages of a conversation, without the keys that are ``ignored``.

    ``ignored`` is None where the user cannot name such keys. Consecutive calls by ``CALLERS``
    are one turn with several calls, which is what they mean in published data. Raises
    BadMessage, or BadRecord where ``turns`` is not a conversation.
    """
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise BadRecord(f"a conversation is a list of messages, not {kind(turns)}")
    made: list[dict[str, Any]] = []
    calling = False
    for number, turn in enumerate(turns, 1):
        try:
            found = message(turn, ignored)
        except BadRecord as error:
            raise BadMessage(number, str(error)) from None
        was, calling = calling, _speaker(turn) in CALLERS
        if calling and was and _but_calls(made[-1]) == _but_calls(found):
            made[-1]["tool_calls"] += found["tool_calls"]
        else:
            made.append(found)
    return made


def _but_calls(made: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in made.items() if key != "tool_calls"}


def message(turn: Any, ignored: Collection[str] | None = None) -> dict[str, Any]:
    """One message, from ``{"role", "content"}``, ``{"from", "value"}`` or ``{ROLE: TEXT}``.

    Raises BadRecord; the caller names the message.
    """
    try:
        return _message(turn, ignored)
    except RecursionError:
        raise BadRecord("it is nested too deeply") from None


def _message(turn: Any, ignored: Collection[str] | None) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise BadRecord(f"it is {kind(turn)}, not an object")
    said = {key: value for key, value in turn.items() if key not in (ignored or ())}
    if len(said) == 1 and (short := next(iter(said))) in ROLES:
        said = {"role": short, "content": said[short]}
    speaker = _speaker(said)
    if speaker is None and "role" not in said and "from" not in said:
        raise BadRecord(f"it has no role, but the keys [{', '.join(map(str, said))}]")
    if speaker not in ROLES:
        role = shown(_one_of(said, "role", "from"))
        raise BadRecord(f"its role is {role}, not one of {', '.join(ROLES)}")
    role = ROLES[speaker]
    given = _one_of(said, "content", "value")
    if given is None and role in ("system", "user"):
        raise BadRecord(f"it is the {role}'s and has no content")
    content, thought = _content(given)
    made: dict[str, Any] = {"role": role, "content": content}
    if speaker in CALLERS:
        made |= {"content": "", "tool_calls": call_in(content, "content")}
    thoughts = {key: said[key] for key in REASONING if not is_empty(said.get(key))}
    if thought:
        thoughts["content"] = thought
    if (reasoning := _reasoning(thoughts, role)).strip():
        made["reasoning_content"] = reasoning
    made |= _calls(said, role, made)
    made |= _names(said)
    if not _is_trained(said, role) or (role == "assistant" and not says_something(made)):
        made["train"] = False
    try:
        _nothing_else(said, USED, HARMLESS)
    except BadRecord as error:
        remedy = "" if ignored is None else ", or name it in the reader's ignored_keys"
        raise BadRecord(f"{error}; remove it{remedy}") from None
    return made


USED = frozenset(
    {
        *("role", "from", "content", "value", "tool_calls", "function_call", "tool_call_id"),
        *("name", *REASONING, *TRAINED, *MASKED),
    }
)
"""Keys of a message that are read."""


def _speaker(turn: Mapping[str, Any]) -> str | None:
    speaker = _one_of(turn, "role", "from")
    if speaker is None and len(turn) == 1 and (short := next(iter(turn))) in ROLES:
        speaker = short
    return speaker.lower() if isinstance(speaker, str) else None


def _one_of(said: Mapping[str, Any], first: str, second: str) -> Any:
    """The value of two keys that mean the same."""
    one, other = said.get(first), said.get(second)
    if one is not None and other is not None and one != other:
        raise BadRecord(f"it has both {first!r} = {shown(one)} and {second!r} = {shown(other)}")
    return other if one is None else one


def _content(content: Any) -> tuple[str, str]:
    """The text of a content, and the thoughts among its parts. Null is an empty text."""
    if content is None:
        return "", ""
    if isinstance(content, list | tuple):
        words: dict[bool, list[str]] = {False: [], True: []}
        for part in content:
            is_thought, text = _part(part)
            words[is_thought].append(text)
        return "".join(words[False]), "".join(words[True])
    if not isinstance(content, str):
        raise BadRecord(f"its content is {kind(content)}, {shown(content)}, not a text")
    return unicode(content, "its content"), ""


def _part(part: Any, within: bool = False) -> tuple[bool, str]:
    """Whether a part of a content, or ``within`` a part, is a thought, and its words."""
    if not isinstance(part, Mapping):
        raise BadRecord(f"a part of its content is {kind(part)}, not an object")
    type_ = part.get("type")
    is_thought = type_ in REASONING
    if not is_thought and type_ not in (None, "text", "input_text", "output_text"):
        raise BadRecord(f"a part of its content has the type {shown(type_)}; only text is known")
    keys = ("text", *REASONING) if is_thought else ("text",)
    key = next((key for key in keys if part.get(key) is not None), "text")
    _nothing_else(part, {key}, PART_HARMLESS)
    text = part.get(key)
    if is_thought and isinstance(text, list) and not within:  # Mistral's: parts in the part
        text = "".join(_part(inner, within=True)[1] for inner in text)
    if not isinstance(text, str):
        raise BadRecord(f"a part of its content holds {kind(text)}, not a text")
    return is_thought, unicode(text, "its content")


def _reasoning(thoughts: Mapping[str, Any], role: str) -> str:
    for key, text in thoughts.items():
        if not isinstance(text, str):
            raise BadRecord(
                f"it has the key {key!r} = {shown(text)}, which is {kind(text)}, not a text"
            )
        if role != "assistant" and text.strip():
            raise BadRecord(
                f"it is the {role}'s and has {key!r} = {shown(text)}; only an assistant thinks"
            )
    different = {text.strip(): key for key, text in thoughts.items()}
    if len(different) > 1:
        raise BadRecord(
            f"it has different thoughts in {' and '.join(map(repr, different.values()))}"
        )
    return unicode(next(iter(thoughts.values()), ""), "its reasoning")


def _calls(said: Mapping[str, Any], role: str, made: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        key: said[key] for key in ("tool_calls", "function_call") if not is_empty(said.get(key))
    }
    if not found:
        return {}
    if role != "assistant":
        key, value = next(iter(found.items()))
        raise BadRecord(
            f"it is the {role}'s and has {key!r} = {shown(value)}; only an assistant calls"
        )
    if len(found) + ("tool_calls" in made) > 1:
        raise BadRecord("it names its calls twice: give 'tool_calls' alone")
    if "function_call" in found:
        return {"tool_calls": calls([found["function_call"]], "function_call")}
    return {"tool_calls": calls(found["tool_calls"])}


def _names(said: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key in ("tool_call_id", "name"):
        if not is_empty(value := said.get(key)):
            if not isinstance(value, str):
                raise BadRecord(
                    f"it has the key {key!r} = {shown(value)}, which is {kind(value)}, not a text"
                )
            found[key] = unicode(value, f"its {key}")
    return found


def _is_trained(said: Mapping[str, Any], role: str) -> bool:
    """Whether the record lets a message be trained; true where the record does not say."""
    asked: dict[str, bool] = {}
    for key in (*TRAINED, *MASKED):
        value = said.get(key)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise BadRecord(
                f"it has the key {key!r} = {shown(value)}; an answer is trained (1) or not (0), "
                "there is nothing between"
            )
        asked[key] = bool(value) != (key in MASKED)
    if len(set(asked.values())) > 1:
        raise BadRecord(f"it is to be trained by one key and not by another: {', '.join(asked)}")
    if role != "assistant" and True in asked.values():
        raise BadRecord(
            f"it is the {role}'s and is to be trained, by {', '.join(asked)}; only an assistant's "
            "answers are"
        )
    return role != "assistant" or False not in asked.values()


def says_something(made: Mapping[str, Any]) -> bool:
    """Whether a message holds an answer to train; for an empty one a template would write only
    the end of its turn."""
    return bool(made["content"].strip() or made.get("tool_calls") or made.get("reasoning_content"))


def _nothing_else(
    found: Mapping[str, Any], used: Collection[str], harmless: Collection[str]
) -> None:
    for key, value in found.items():
        if key not in used and key not in harmless and not is_empty(value):
            raise BadRecord(f"it has the key {key!r} = {shown(value)}, whose meaning is not known")
