"""Published chat formats as templates, for base models whose tokenizer has no chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from easyllm.data.chat.templates import (
    TO_PLAIN,
    Messages,
    end_of_sequence,
    one_document,
    only_words,
    quoted,
    tokens_of,
)
from easyllm.errors import BadRecord, UserError
from easyllm.spec.roles import ChatDocument, Template
from easyllm.spec.types import NonNegativeInt

Piece = tuple[int | str, bool]
"""A token's id, or a text that is encoded by itself; and whether it is trained."""


def joined(tokenizer: Any, pieces: Sequence[Piece]) -> tuple[list[int], list[bool]]:
    """Token ids of the pieces, and which are trained. Names of special tokens in a text are
    words."""
    ids: list[int] = []
    trained: list[bool] = []
    for piece, train in pieces:
        found = [piece] if isinstance(piece, int) else tokens_of(tokenizer, piece)
        ids += found
        trained += [train] * len(found)
    return ids, trained


@dataclass(frozen=True, kw_only=True)
class ChatML(Template):
    """``<|im_start|>role``, a line break, the words, ``<|im_end|>`` and a line break; for
    system, user, assistant and tool alike. The tokenizer must have both tokens.
    """

    def chat_template(self, tokenizer: Any) -> str:
        return (
            "{% for message in messages %}"
            "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
            "{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
        )

    def encode(self, tokenizer: Any, messages: Messages) -> list[ChatDocument]:
        return one_document(*self._encode(tokenizer, messages))

    def _encode(self, tokenizer: Any, messages: Messages) -> tuple[list[int], list[bool]]:
        only_words(messages)
        start, end = (_token(tokenizer, name) for name in ("<|im_start|>", "<|im_end|>"))
        pieces: list[Piece] = []
        for message in messages:
            train = message["role"] == "assistant" and message.get("train", True)
            pieces += [(start, False), (f"{message['role']}\n", False)]
            pieces += [(message["content"], train), (end, train), ("\n", False)]
        return joined(tokenizer, pieces)

    def prompt(self, tokenizer: Any, messages: Messages) -> list[int]:
        start = _token(tokenizer, "<|im_start|>")
        ids, _ = self._encode(tokenizer, messages)
        return [*ids, start, *tokens_of(tokenizer, "assistant\n")]


def _token(tokenizer: Any, name: str) -> int:
    number = tokenizer.get_added_vocab().get(name)
    if number is None:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path} has no token {name}, which ChatML needs; "
            f"{TO_PLAIN}"
        )
    return int(number)


@dataclass(frozen=True, kw_only=True)
class Llama2(Template):
    """``<s>[INST] user [/INST] answer </s>`` for each pair of turns, the system's words
    between ``<<SYS>>`` marks in the first. Blanks around a turn's words are dropped.
    """

    def chat_template(self, tokenizer: Any) -> str:
        return (
            "{% set ns = namespace(system='') %}{% for message in messages %}"
            "{% if message['role'] == 'system' %}"
            "{% set ns.system = '<<SYS>>\\n' + message['content'].strip() + '\\n<</SYS>>\\n\\n' %}"
            "{% elif message['role'] == 'user' %}"
            "{{ bos_token + '[INST] ' + ns.system + message['content'].strip() + ' [/INST]' }}"
            "{% set ns.system = '' %}{% else %}"
            "{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
        )

    def encode(self, tokenizer: Any, messages: Messages) -> list[ChatDocument]:
        return one_document(*self._encode(tokenizer, messages))

    def _encode(self, tokenizer: Any, messages: Messages) -> tuple[list[int], list[bool]]:
        only_words(messages)
        eos, bos = end_of_sequence(tokenizer), tokenizer.bos_token_id
        if bos is None:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path} has no begin-of-sequence token, which "
                f"Llama2 needs; {TO_PLAIN}"
            )
        system, *turns = self._system(messages)
        pieces: list[Piece] = []
        for place, message in enumerate(turns):
            words = message["content"].strip()
            if message["role"] != ("user", "assistant")[place % 2]:
                raise BadRecord("in Llama2's format user and assistant take turns, user first")
            if message["role"] == "user":
                pieces += [(bos, False), (f"[INST] {system}{words} [/INST]", False)]
                system = ""
            else:
                train = message.get("train", True)
                pieces += [(f" {words} ", train), (eos, train)]
        return joined(tokenizer, pieces)

    def prompt(self, tokenizer: Any, messages: Messages) -> list[int]:
        return self._encode(tokenizer, messages)[0]

    @staticmethod
    def _system(messages: Messages) -> tuple[Any, ...]:
        """The system's part of the first turn, and the other messages."""
        if messages and messages[0]["role"] == "system":
            return f"<<SYS>>\n{messages[0]['content'].strip()}\n<</SYS>>\n\n", *messages[1:]
        return "", *messages


@dataclass(frozen=True, kw_only=True)
class Baichuan(Template):
    """A token, given by its id, before each turn's words: 195 the user's, 196 the assistant's.
    The end-of-sequence token follows each answer; the system's words come first, without a token.
    """

    user_token: NonNegativeInt = 195
    """Id of the token that begins a user's turn."""
    assistant_token: NonNegativeInt = 196
    """Id of the token that begins an answer."""

    def chat_template(self, tokenizer: Any) -> str | None:
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        if not {self.user_token, self.assistant_token} <= special:
            return None  # no text represents them
        user, assistant = tokenizer.convert_ids_to_tokens([self.user_token, self.assistant_token])
        return (
            "{% for message in messages %}{% if message['role'] == 'user' %}"
            f"{{{{ {quoted(user)} + message['content'] }}}}"
            "{% elif message['role'] == 'assistant' %}"
            f"{{{{ {quoted(assistant)} + message['content'] + eos_token }}}}"
            "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
            f"{{% if add_generation_prompt %}}{{{{ {quoted(assistant)} }}}}{{% endif %}}"
        )

    def encode(self, tokenizer: Any, messages: Messages) -> list[ChatDocument]:
        return one_document(*self._encode(tokenizer, messages))

    def _encode(self, tokenizer: Any, messages: Messages) -> tuple[list[int], list[bool]]:
        only_words(messages)
        eos = end_of_sequence(tokenizer)
        if max(self.user_token, self.assistant_token) >= len(tokenizer):
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path} has {len(tokenizer)} tokens only; give "
                "data.template.user_token and data.template.assistant_token below that"
            )
        pieces: list[Piece] = []
        for place, message in enumerate(messages):
            role, words = message["role"], message["content"]
            if role == "assistant":
                train = message.get("train", True)
                pieces += [(self.assistant_token, False), (words, train), (eos, train)]
            elif role == "user":
                pieces += [(self.user_token, False), (words, False)]
            elif place == 0 and role == "system":
                pieces += [(words, False)]
            else:
                raise BadRecord(f"Baichuan's format has no turn of {role} at place {place + 1}")
        return joined(tokenizer, pieces)

    def prompt(self, tokenizer: Any, messages: Messages) -> list[int]:
        return [*self._encode(tokenizer, messages)[0], self.assistant_token]
