"""A tokenizer's chat template: rendered, and probed for what it reads and how it ends a turn."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os.path
import re
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from easyllm.data.chat.text_ids import token_pattern
from easyllm.errors import BadRecord, UserError
from easyllm.spec.roles import Message

Messages = Sequence[Message]
Arguments = Mapping[str, Any]
"""Arguments of a template beside the messages, such as ``{"enable_thinking": False}``."""

NO_TEMPLATE = "give data.template._target_=easyllm.data.chat.templates.Plain"

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Names under which templates read an answer's reasoning."""

THINKING_SWITCHES: tuple[tuple[str, Any, Any], ...] = (
    ("enable_thinking", False, True),
    ("thinking", False, True),
    ("reasoning_effort", "none", "high"),
)
"""Arguments by which templates turn thinking off and on: name, value for off, value for on."""

OPENING_TAG = re.compile(
    r"(?P<tag><\|START_THINKING\|>|[<\[]\|?(?P<name>(?:\w+:)?(?:think|thinking|thought)(?::\w+)?)"
    r"\|?[>\]])\s*\Z",
    re.IGNORECASE,
)
"""The tag with which a prompt leaves the reasoning open."""

_QUESTION, _ANSWER, _REASONING = "kQuestion7", "kAnswer7", "kReasoning7"
_FOLLOWING, _NAME, _VALUE = "kFollowing7", "kFunction7", "kValue7"
"""Words that no template contains: their places in a rendering show what the template does."""

_USER = {"role": "user", "content": _QUESTION}
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "Look something up.",
        "parameters": {"type": "object", "properties": {"key": {"type": "string"}}},
    },
}


class Refused(BadRecord):
    """The template raises an error for a conversation."""


@dataclass(frozen=True)
class Tag:
    """How a prompt opens an answer's reasoning, and what closes it."""

    closing: str
    before: str
    """The text between the reasoning and ``closing``."""
    after: str
    """The text between ``closing`` and the answer."""

    @classmethod
    def at_end(cls, prompt: str) -> Tag | None:
        """The tag that ``prompt`` ends with and leaves open; None where there is none."""
        found = OPENING_TAG.search(prompt)
        if found is None:
            return None
        tag = found["tag"]
        if found["name"]:
            closing = tag.replace(found["name"], "/" + found["name"], 1)
        else:
            closing = tag.replace("START", "END")
        lines = prompt.endswith("\n")
        return cls(closing, "\n" if lines else "", "\n\n" if lines else "")


@dataclass
class ChatTemplate:
    """The chat template of a tokenizer, as transformers renders it.

    What it reads is found by probing it, never by its name: templates of one family of models
    follow different rules. Raises UserError where the tokenizer has no template.
    """

    tokenizer: Any
    defaults: Arguments = field(default_factory=dict)
    """Arguments that each rendering gets."""
    lost_by_shape: dict[str, str | None] = field(default_factory=dict)
    """What the template drops from conversations, by their shape, which ignores the words."""

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            raise UserError(
                f"the tokenizer {self.tokenizer.name_or_path} has no chat_template; {NO_TEMPLATE}"
            )

    # -- rendering ---------------------------------------------------------------------------

    def render(self, messages: Messages, prompt: bool = False, **arguments: Any) -> str:
        """The text of normalised messages, with the generation prompt where ``prompt``.

        Raises Refused where the template raises an error of any kind.
        """
        return self._render(self.prepared(messages), messages[0].get("tools"), prompt, arguments)

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Any,
        prompt: bool,
        arguments: Arguments,
    ) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages,
                tools=tools,
                tokenize=False,
                add_generation_prompt=prompt,
                **{**self.defaults, **arguments},
            )
        # a template is a program: it may raise any error, RecursionError and OverflowError too
        except Exception as error:
            roles = ", ".join(message["role"] for message in messages)
            words = " ".join(str(error).split())[:300] or type(error).__name__
            raise Refused(
                f"the tokenizer's chat_template refuses a conversation of [{roles}]: {words}; "
                f"change the record, or {NO_TEMPLATE}"
            ) from None
        return text

    def prepared(self, messages: Messages) -> list[dict[str, Any]]:
        """Normalised messages in the form that this template reads."""
        return [self._prepared(message) for message in messages]

    def _prepared(self, message: Message) -> dict[str, Any]:
        made = {k: v for k, v in message.items() if k not in ("tools", "train")}
        if "reasoning_content" in made and self.reasoning_key not in (None, "reasoning_content"):
            reasoning = made.pop("reasoning_content")
            if self.reasoning_key == "parts":
                made["content"] = _parts(reasoning, made["content"])
            else:
                made[str(self.reasoning_key)] = reasoning
        if calls := made.get("tool_calls"):
            made["tool_calls"] = [self._prepared_call(call) for call in calls]
        if self.short_call_ids and made.get("tool_call_id"):
            made["tool_call_id"] = _short(made["tool_call_id"])
        return made

    def _prepared_call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        made = {**call, "function": dict(call["function"])}
        if self.text_arguments:
            arguments = made["function"].get("arguments")
            made["function"]["arguments"] = json.dumps(arguments, ensure_ascii=False)
        if self.short_call_ids:
            made["id"] = _short(str(made.get("id", made["function"].get("name"))))
        return made

    # -- what the template reads -------------------------------------------------------------

    @functools.cached_property
    def reasoning_key(self) -> str | None:
        """The key under which the template reads an answer's reasoning, ``"parts"`` where it
        reads parts of its content; None where it reads none."""
        for key in REASONING_KEYS:
            answer: dict[str, Any] = {"role": "assistant", "content": _ANSWER, key: _REASONING}
            if _REASONING in (self._probed([_USER, answer]) or ""):
                return key
        answer = {"role": "assistant", "content": _parts(_REASONING, _ANSWER)}
        text = self._probed([_USER, answer]) or ""
        # a template that knows no parts may write the list as Python or JSON does
        return "parts" if _REASONING in text and not re.search(r"['\"]type['\"]", text) else None

    @functools.cached_property
    def knows_reasoning(self) -> bool:
        """Whether the template writes an answer's reasoning, or prompts for it."""
        if self.reasoning_key is not None:
            return True
        return OPENING_TAG.search(self._probed([_USER], prompt=True) or "") is not None

    @functools.cached_property
    def text_arguments(self) -> bool:
        """Whether a call's arguments must be JSON text, as the template appends them to a text."""
        return self._calls(arguments={"key": _VALUE}) is None and bool(
            self._calls(arguments=json.dumps({"key": _VALUE}))
        )

    @functools.cached_property
    def short_call_ids(self) -> bool:
        """Whether the template takes only ids of nine letters and digits, as Mistral's do."""
        return self._calls(id="call_1234567") is None and self._calls(id="abcdefgh1") is not None

    def _calls(self, arguments: Any = None, id: str = "abcdefgh1") -> str | None:
        return self._probed([_USER, _call(arguments or {"key": _VALUE}, id)], tools=[_TOOL])

    def _probed(
        self, messages: list[dict[str, Any]], prompt: bool = False, tools: Any = None
    ) -> str | None:
        """A rendering of messages as they are; None where the template refuses them."""
        for given in (tools, [_TOOL]):  # some templates are for conversations with tools only
            with contextlib.suppress(Refused):
                return self._render(messages, given, prompt, {})
        return None

    # -- thinking ----------------------------------------------------------------------------

    @functools.cached_property
    def thinking_off(self) -> Arguments | None:
        """Arguments with which the prompt no longer leaves the reasoning open; None where no
        known ones do that."""
        return self._switch(1, wanted=False)

    @functools.cached_property
    def thinking_on(self) -> Arguments | None:
        """Arguments with which the prompt leaves room for reasoning that it closes by default."""
        return self._switch(2, wanted=True)

    def _switch(self, value: int, wanted: bool) -> Arguments | None:
        default = self._probed([_USER], prompt=True)
        for switch in THINKING_SWITCHES:
            arguments = {switch[0]: switch[value]}
            with contextlib.suppress(Refused):
                prompt = self._render([_USER], None, True, arguments)
                if prompt != default and (wanted or Tag.at_end(prompt) is None):
                    return arguments
        return None

    # -- the end of a turn -------------------------------------------------------------------

    @functools.cached_property
    def added_tokens(self) -> re.Pattern[str]:
        """Matches the text of each token that is not made of others, longest first."""
        return token_pattern(
            [*map(str, self.tokenizer.added_tokens_decoder.values()),
             *self.tokenizer.all_special_tokens]
        )  # fmt: skip

    @functools.cached_property
    def answer_end(self) -> str | None:
        """The token that ends an answer in words; None where no token does."""
        answer = {"role": "assistant", "content": _ANSWER}
        return self._end(answer, {"role": "user", "content": _FOLLOWING}, _ANSWER)

    @functools.cached_property
    def call_end(self) -> str | None:
        """The token that ends a turn that calls a tool; None where no token does, or the
        template writes no calls."""
        arguments: Any = {"key": _VALUE}
        call = _call(json.dumps(arguments) if self.text_arguments else arguments, "abcdefgh1")
        result = {"role": "tool", "content": _FOLLOWING, "tool_call_id": "abcdefgh1",
                  "name": _NAME}  # fmt: skip
        return self._end(call, result, _VALUE, [_TOOL])

    def _end(
        self, turn: dict[str, Any], next_turn: dict[str, Any], said: str, tools: Any = None
    ) -> str | None:
        """The token that ends ``turn``, whose last words are ``said``."""
        rest = self._written_after([_USER, turn], said, tools)
        if rest is None:
            return None
        followed = self._probed([_USER, turn, next_turn], tools=tools) or ""
        between = _between(followed, said, _FOLLOWING)
        if not self.ends_itself:
            # no token ends it: the one that opens the next turn does, when the model generates it
            shared = common(rest, between)
            found = self.added_tokens.findall(between, len(shared))
            return next(iter(found or self.added_tokens.findall(shared)[::-1]), None)
        ends = self.added_tokens.findall(common(rest, between) if between else rest)
        # some templates always write the prompt for a next answer: a turn's start ends no turn
        ends = [end for end in ends if end != self.turn_start] or self.added_tokens.findall(rest)
        return ends[-1] if ends else self.answer_end

    def _written_after(
        self, messages: list[dict[str, Any]], said: str, tools: Any = None
    ) -> str | None:
        """The text after ``said`` in a rendering; None where the rendering does not contain it."""
        text = self._probed(messages, tools=tools)
        return None if text is None or said not in text else text.rpartition(said)[2]

    @functools.cached_property
    def ends_itself(self) -> bool:
        """Whether the template writes a token after an answer without waiting for a next turn."""
        rest = self._written_after([_USER, {"role": "assistant", "content": _ANSWER}], _ANSWER)
        return self.added_tokens.search(rest or "") is not None

    @functools.cached_property
    def turn_start(self) -> str | None:
        """The token that opens a turn, where the conversation begins with one."""
        text = (self._probed([_USER]) or "").removeprefix(self.tokenizer.bos_token or "")
        found = self.added_tokens.match(text)
        return found[0] if found else None

    @functools.cached_property
    def writes_calls(self) -> bool:
        """Whether the template writes calls of tools."""
        return _VALUE in (self._calls() or "") or self.text_arguments


def chat_template(tokenizer: Any, **defaults: Any) -> ChatTemplate:
    """The tokenizer's template; the results of probing are kept for the tokenizer's lifetime."""
    known = _KNOWN.setdefault(tokenizer, {})
    text = str(tokenizer.chat_template)
    key = (text, tokenizer.eos_token, len(tokenizer), repr(sorted(defaults.items())))
    if key not in known:
        known[key] = ChatTemplate(weakref.proxy(tokenizer), defaults)
    return known[key]


_KNOWN: weakref.WeakKeyDictionary[Any, dict[Any, ChatTemplate]] = weakref.WeakKeyDictionary()


def _parts(reasoning: str, content: str) -> list[dict[str, str]]:
    return [{"type": "thinking", "thinking": reasoning}, {"type": "text", "text": content}]


def _call(arguments: Any, id: str) -> dict[str, Any]:
    function = {"name": _NAME, "arguments": arguments}
    call = {"type": "function", "id": id, "function": function}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _short(text: str) -> str:
    """Nine letters and digits for an id, the same ones each time."""
    if re.fullmatch(r"[a-zA-Z0-9]{9}", text):
        return text
    return hashlib.sha256(text.encode()).hexdigest()[:9]


def _between(text: str, first: str, second: str) -> str:
    """The text between the last ``second`` and the last ``first`` before it."""
    head, found, _ = text.rpartition(second)
    return head.rpartition(first)[2] if found and first in head else ""


def common(first: str, second: str) -> str:
    """The text that both begin with."""
    return os.path.commonprefix([first, second])  # noqa: RUF071  (of texts, not of paths)
