"""The documents that a conversation becomes: each answer in the context of serving."""

from __future__ import annotations

import json

from easyllm.data.chat.answers import separate_reasoning, turn_at
from easyllm.data.chat.completeness import check_nothing_lost
from easyllm.data.chat.messages import says_something
from easyllm.data.chat.rendering import ChatTemplate, Messages
from easyllm.data.chat.text_ids import TextIds
from easyllm.errors import BadRecord
from easyllm.spec.roles import ChatDocument


def documents(
    template: ChatTemplate, encoder: TextIds, messages: Messages, close_reasoning: bool
) -> list[ChatDocument]:
    """A conversation as the fewest documents in which each answer follows exactly the token ids
    with which a server would ask for it.

    The context of an answer is the conversation before it with the generation prompt. An answer
    joins the document of the answers before it where that document's ids begin its context.
    Where the template writes the earlier turns differently once there is a next one, the answer
    begins a new document. Only a document's own new answers are trained. Raises BadRecord where
    the template cannot express the conversation or drops a part of it; the error names the part.
    """
    messages = separate_reasoning(template, messages)
    made: list[ChatDocument] = []
    checked = 0
    rest = ""
    for place, message in enumerate(messages):
        trained = message["role"] == "assistant" and message.get("train", True)
        if not trained or not says_something(message):
            continue
        if place == 0:
            raise BadRecord(
                "the assistant speaks first, which the tokenizer's chat_template has no prompt "
                "for; begin with a user's turn"
            )
        turn = turn_at(template, messages, place, close_reasoning)
        check_nothing_lost(template, messages, checked, place, turn, close_reasoning)
        checked = place
        context = encoder.of(turn.context)
        answer = encoder.after(turn.context, turn.answer)
        before = made[-1] if made else None
        mask: list[bool] = []
        arguments: tuple[str, ...] = (json.dumps(turn.arguments, sort_keys=True),)
        if before and context[: len(before.ids)] == before.ids:
            made.pop()
            mask, arguments = before.trained, before.arguments + arguments
        elif before:
            made[-1] = _with_rest(encoder, before, rest)
        mask = [*mask, *[False] * (len(context) - len(mask)), *[True] * len(answer)]
        made.append(ChatDocument(context + answer, mask, arguments))
        rest = turn.rest
    if made:
        made[-1] = _with_rest(encoder, made[-1], rest)
    return made


def _with_rest(encoder: TextIds, document: ChatDocument, rest: str) -> ChatDocument:
    """The document with the blanks that a template writes after the end of a turn, untrained."""
    ids = encoder.of(rest)
    return document._replace(ids=document.ids + ids, trained=document.trained + [False] * len(ids))
