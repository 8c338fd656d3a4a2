"""Templates: how a conversation becomes tokens, and which of them are trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from easyllm.errors import BadRecord, UserError
from easyllm.spec.roles import Message, Template

Messages = Sequence[Message]

TO_PLAIN = "give data.template._target_=easyllm.data.templates.Plain"


@dataclass(frozen=True, kw_only=True)
class TokenizerTemplate(Template):
    """The tokenizer's own ``chat_template``.

    Trained are the assistant's words and the token that ends its turn. They are found by
    rendering: an answer is what the conversation up to it has beyond the conversation
    before it with the generation prompt.
    """

    def encode(self, tokenizer: Any, messages: Messages) -> tuple[list[int], list[bool]]:
        whole = _render(tokenizer, messages)
        spans = []
        for turn, message in enumerate(messages):
            if message["role"] == "assistant":
                if turn == 0:
                    raise BadRecord(
                        "the assistant speaks first, which the tokenizer's chat_template has no "
                        f"prompt for; begin with a user's turn, or {TO_PLAIN}"
                    )
                before = _render(tokenizer, messages[:turn], prompt=True)
                until = _render(tokenizer, messages[: turn + 1])
                if not (whole.startswith(until) and until.startswith(before)):
                    raise BadRecord(
                        "the tokenizer's chat_template renders an answer otherwise once the "
                        "conversation goes on, so what the assistant says cannot be told from "
                        f"the rest; {TO_PLAIN}, or mend chat_template in the tokenizer's folder"
                    )
                spans.append((len(before), len(until)))
        ids, offsets = _encode(tokenizer, whole)
        trained = [False] * len(ids)
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        for start, end in spans:
            answer = [place for place, at in enumerate(offsets) if at[1] > start and at[0] < end]
            # many templates put a line break after the end of turn, which no model generates
            last = max((place for place in answer if ids[place] in special), default=None)
            if last is not None and not whole[offsets[last][1] : end].strip():
                answer = [place for place in answer if place <= last]
            for place in answer:
                trained[place] = True
        return ids, trained

    def prompt(self, tokenizer: Any, messages: Messages) -> list[int]:
        return _encode(tokenizer, _render(tokenizer, messages, prompt=True))[0]


@dataclass(frozen=True, kw_only=True)
class Plain(Template):
    """Speakers' names before their words, for base models without a chat template.

    The end-of-sequence token follows each answer and is trained with it.
    """

    system: str = ""
    user: str = "User:"
    assistant: str = "Assistant:"
    tool: str = "Tool:"
    """What stands before the words of each; a space is put between."""

    def chat_template(self, tokenizer: Any) -> str:
        turns = "".join(
            f"{{% {'if' if role == 'system' else 'elif'} message['role'] == '{role}' %}}"
            f"{{{{ {quoted(before + ' ' if before else '')} + message['content'] + '\\n' }}}}"
            for role, before in (("system", self.system), ("user", self.user), ("tool", self.tool))
        )
        answer = quoted(f"{self.assistant} " if self.assistant else "")
        return (
            f"{{% for message in messages %}}{turns}{{% else %}}"
            f"{{{{ {answer} + message['content'] + eos_token }}}}{{% endif %}}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{{{{ {quoted(self.assistant)} }}}}{{% endif %}}"
        )

    def encode(self, tokenizer: Any, messages: Messages) -> tuple[list[int], list[bool]]:
        without_calls(messages)
        eos = end_of_sequence(tokenizer)
        ids: list[int] = []
        trained: list[bool] = []
        text = ""
        for message in messages:
            if message["role"] != "assistant":
                text += self._turn(message) + "\n"
                continue
            start = len(text) + len(self.assistant)
            block, offsets = _encode(tokenizer, text + self._turn(message), literal=True)
            ids += [*block, eos]
            trained += [*(end > start for _, end in offsets), True]
            text = ""
        return ids, trained

    def prompt(self, tokenizer: Any, messages: Messages) -> list[int]:
        ids: list[int] = []
        text = ""
        done = max((i + 1 for i, m in enumerate(messages) if m["role"] == "assistant"), default=0)
        if done:
            ids, _ = self.encode(tokenizer, messages[:done])
        for message in messages[done:]:
            text += self._turn(message) + "\n"
        return ids + _encode(tokenizer, text + self.assistant, literal=True)[0]

    def _turn(self, message: Message) -> str:
        speaker = getattr(self, message["role"])
        return f"{speaker} {message['content']}" if speaker else message["content"]


def quoted(text: str) -> str:
    """A text as a literal of Jinja."""
    return json.dumps(text, ensure_ascii=False)


def without_calls(messages: Messages) -> None:
    """Raises BadRecord for calls of tools, which only a tokenizer's own template words."""
    if any(message.get("tools") or message.get("tool_calls") for message in messages):
        raise BadRecord(
            "the conversation calls tools, which only a tokenizer's own chat_template puts into "
            "words; give data.template._target_=easyllm.data.templates.TokenizerTemplate"
        )


def end_of_sequence(tokenizer: Any) -> int:
    """The id of the end-of-sequence token. Raises UserError where there is none."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path} has no end-of-sequence token; "
            "set eos_token in its tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)


def tokens_of(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text in which the names of special tokens are mere words."""
    return _encode(tokenizer, text, literal=True)[0]


def _render(tokenizer: Any, messages: Messages, prompt: bool = False) -> str:
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer {tokenizer.name_or_path} has no chat_template; {TO_PLAIN}")
    from jinja2 import TemplateError

    said = [{key: value for key, value in m.items() if key != "tools"} for m in messages]
    try:
        text: str = tokenizer.apply_chat_template(
            said,
            tools=messages[0].get("tools") if messages else None,
            tokenize=False,
            add_generation_prompt=prompt,
        )
    except (TemplateError, TypeError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise BadRecord(
            f"the tokenizer's chat_template refuses a conversation of [{roles}]: {error}; "
            f"mend the data, or {TO_PLAIN}"
        ) from None
    return text


def _encode(
    tokenizer: Any, text: str, literal: bool = False
) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids and their spans of characters; ``literal`` takes the names of special
    tokens in the text for mere words."""
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path} is not a fast one, which tells which "
            "characters a token stands for; use its version with a tokenizer.json"
        )
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        split_special_tokens=literal,
    )
    return encoded["input_ids"], encoded["offset_mapping"]
