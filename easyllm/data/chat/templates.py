"""Templates: how a conversation becomes tokens, and which of them are trained."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easyllm.errors import BadRecord, UserError
from easyllm.spec.fields import empty
from easyllm.spec.problems import Problem
from easyllm.spec.roles import ChatDocument, Message, Template

if TYPE_CHECKING:
    from easyllm.data.chat.rendering import ChatTemplate
    from easyllm.spec.run import RunSpec

Messages = Sequence[Message]

TRAINED_DATE = "2025-01-01"
"""The date for a template that asks for today's date, where the spec gives none."""

TO_PLAIN = "give data.template._target_=easyllm.data.chat.templates.Plain"


@dataclass(frozen=True, kw_only=True)
class TokenizerTemplate(Template):
    """The tokenizer's own ``chat_template``.

    An answer is trained, to the token that ends its turn, in exactly the token context in which
    a server would ask for it: the conversation before it with the generation prompt. Where the
    template writes earlier turns differently once there is a next one (history without thinking,
    another end of the last answer), a conversation becomes several documents.
    """

    arguments: dict[str, Any] = empty()
    """Arguments that the template gets beside the messages, such as ``enable_thinking: false``;
    elsewhere they are called ``chat_template_kwargs``."""
    close_empty_reasoning: bool = False
    """Where the prompt opens the reasoning and an answer has none, train the closing tag at
    once; otherwise the template's switch for no thinking is used, or the record is rejected."""
    date: str | None = None
    """The date for a template that asks for today's date, as 2025-01-31. Null trains with
    2025-01-01, because a store must not depend on the day when it was made. The tokenizer of the
    store, and of the models trained from it, keeps the date of training; ``today`` or another
    date here changes it for inference and serving."""

    def problems(self, key: str, run: RunSpec) -> Iterator[Problem]:
        if self.date is None:
            return
        if self.date == "today":
            if "tokenize" in run.stages:
                yield Problem(
                    f"{key}.date", self.date, "a store must not depend on the day",
                    "give the date to train with, as 2025-01-31",
                )  # fmt: skip
            return
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError:
            yield Problem(
                f"{key}.date", self.date, "is no date", "give one as 2025-01-31, or today"
            )

    def prepare(self, folder: Path) -> None:
        from easyllm.data.chat.template_text import set_date

        set_date(folder, self.date or TRAINED_DATE)

    def encode(self, tokenizer: Any, messages: Messages) -> list[ChatDocument]:
        from easyllm.data.chat.documents import documents
        from easyllm.data.chat.text_ids import text_ids

        template = self._template(tokenizer)
        return documents(template, text_ids(tokenizer), messages, self.close_empty_reasoning)

    def prompt(self, tokenizer: Any, messages: Messages) -> list[int]:
        from easyllm.data.chat.answers import separate_reasoning
        from easyllm.data.chat.text_ids import text_ids

        template = self._template(tokenizer)
        text = template.render(separate_reasoning(template, messages), prompt=True)
        return text_ids(tokenizer).of(text)

    def stop_tokens(self, tokenizer: Any) -> list[int]:
        template = self._template(tokenizer)
        ends = (template.answer_end, template.call_end)
        ids = tokenizer.convert_tokens_to_ids([end for end in ends if end])
        return list(dict.fromkeys(ids))

    def _template(self, tokenizer: Any) -> ChatTemplate:
        from easyllm.data.chat.rendering import chat_template
        from easyllm.data.chat.template_text import date_arguments

        date = date_arguments(self.date) if self.date else {}
        return chat_template(tokenizer, **date, **self.arguments)


@dataclass(frozen=True, kw_only=True)
class Plain(Template):
    """Speakers' names before their words, for base models without a chat template.

    The end-of-sequence token follows each answer and is trained with it.
    """

    system: str = ""
    """The text before the system's words; a space follows it, as in the fields below."""
    user: str = "User:"
    """The text before the user's words."""
    assistant: str = "Assistant:"
    """The text before the assistant's words."""
    tool: str = "Tool:"
    """The text before a tool's words."""

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

    def encode(self, tokenizer: Any, messages: Messages) -> list[ChatDocument]:
        return one_document(*self._encode(tokenizer, messages))

    def _encode(self, tokenizer: Any, messages: Messages) -> tuple[list[int], list[bool]]:
        only_words(messages)
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
            train = message.get("train", True)
            ids += [*block, eos]
            trained += [*(train and end > start for _, end in offsets), train]
            text = ""
        return ids, trained

    def prompt(self, tokenizer: Any, messages: Messages) -> list[int]:
        ids: list[int] = []
        text = ""
        done = max((i + 1 for i, m in enumerate(messages) if m["role"] == "assistant"), default=0)
        if done:
            ids, _ = self._encode(tokenizer, messages[:done])
        for message in messages[done:]:
            text += self._turn(message) + "\n"
        return ids + _encode(tokenizer, text + self.assistant, literal=True)[0]

    def _turn(self, message: Message) -> str:
        speaker = getattr(self, message["role"])
        return f"{speaker} {message['content']}" if speaker else message["content"]


def quoted(text: str) -> str:
    """A text as a literal of Jinja."""
    return json.dumps(text, ensure_ascii=False)


def one_document(ids: list[int], trained: list[bool]) -> list[ChatDocument]:
    """A conversation as one document; no document where nothing of it is trained."""
    return [ChatDocument(ids, trained)] if any(trained) else []


def only_words(messages: Messages) -> None:
    """Raises BadRecord for calls of tools and reasoning, which only a tokenizer's own template
    writes."""
    for key, what in (("tools", "has tools"), ("tool_calls", "calls tools"),
                      ("reasoning_content", "has reasoning")):  # fmt: skip
        if any(message.get(key) for message in messages):
            raise BadRecord(
                f"the conversation {what}, which only a tokenizer's own chat_template writes; "
                "give data.template._target_=easyllm.data.chat.templates.TokenizerTemplate"
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
    """Token ids of a text in which the names of special tokens are words."""
    return _encode(tokenizer, text, literal=True)[0]


def _encode(
    tokenizer: Any, text: str, literal: bool = False
) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids and their spans of characters; ``literal`` encodes the names of special
    tokens in the text as words."""
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path} is not a fast one, which gives the "
            "characters of each token; use its version with a tokenizer.json"
        )
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        split_special_tokens=literal,
    )
    return encoded["input_ids"], encoded["offset_mapping"]
