"""How OpenAI's routes write answers: whole ones, and the chunks of those that are streamed."""

from __future__ import annotations

import abc
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from easyllm.inference.detokenizer import Piece
from easyllm.inference.token_texts import TokenText
from easyllm.serving.routes.requests import OpenAIRequest
from easyllm.serving.service import Note, Service
from easyllm.spec.inference import SamplingSpec


@dataclass
class Answer:
    """An answer gathered from its pieces."""

    text: str = ""
    logprobs: list[TokenText] = field(default_factory=list)
    finish_reason: str | None = None

    def grow(self, piece: Piece) -> None:
        self.text += piece.text
        self.logprobs += piece.logprobs
        self.finish_reason = piece.finish_reason


class Format(abc.ABC):
    """How a route writes its answers."""

    prefix: str
    kind: str
    chunk_kind: str

    def __init__(self, service: Service, asked: OpenAIRequest, sampling: SamplingSpec):
        self.asked = asked
        self.with_logprobs = sampling.logprobs is not None
        self._head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": service.model,
        }

    def head(self) -> dict[str, Any]:
        return dict(self._head)

    @abc.abstractmethod
    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """A whole answer as a choice."""

    def opening(self, count: int) -> list[dict[str, Any]]:
        """Choices of the chunks that come before the first piece."""
        return []

    @abc.abstractmethod
    def deltas(self, index: int, piece: Piece, offset: int) -> list[dict[str, Any]]:
        """Choices of the chunks of a piece; ``offset``, in characters of the answer, is where the
        first token of its log-probabilities begins."""


class ChatFormat(Format):
    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": self._logprobs(answer.logprobs),
            "finish_reason": answer.finish_reason,
        }

    def opening(self, count: int) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [
            {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            for index in range(count)
        ]

    def deltas(self, index: int, piece: Piece, offset: int) -> list[dict[str, Any]]:
        logprobs = self._logprobs(piece.logprobs)
        chunks: list[dict[str, Any]] = []
        if piece.text or piece.logprobs:
            delta = {"content": piece.text}
            chunks.append({"delta": delta, "logprobs": logprobs, "finish_reason": None})
        if piece.finish_reason:
            chunks.append({"delta": {}, "logprobs": None, "finish_reason": piece.finish_reason})
        return [{"index": index, **chunk} for chunk in chunks]

    def _logprobs(self, logprobs: list[TokenText]) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None

        def entry(one: TokenText) -> dict[str, Any]:
            value = None if one.bytes is None else list(one.bytes)
            return {"token": one.text, "logprob": one.logprob, "bytes": value}

        content = [
            {**entry(one), "top_logprobs": [entry(other) for other in one.top]} for one in logprobs
        ]
        return {"content": content, "refusal": None}


class CompletionFormat(Format):
    prefix = "cmpl"
    kind = chunk_kind = "text_completion"

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        return {
            "index": index,
            "text": answer.text,
            "logprobs": self._logprobs(answer.logprobs, 0),
            "finish_reason": answer.finish_reason,
        }

    def deltas(self, index: int, piece: Piece, offset: int) -> list[dict[str, Any]]:
        return [
            {
                "index": index,
                "text": piece.text,
                "logprobs": self._logprobs(piece.logprobs, offset),
                "finish_reason": piece.finish_reason,
            }
        ]

    def _logprobs(self, logprobs: list[TokenText], offset: int) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        offsets = []
        for one in logprobs:
            offsets.append(offset)
            offset += len(one.text)
        return {
            "tokens": [one.text for one in logprobs],
            "token_logprobs": [one.logprob for one in logprobs],
            "top_logprobs": [_by_text(one) for one in logprobs],
            "text_offset": offsets,
        }


def _by_text(one: TokenText) -> dict[str, float] | None:
    """The log-probabilities at a token's place. Tokens with the same text, as those that end
    within a character have, are named by their bytes, except for the token that came."""
    if one.logprob is None:
        return None
    found: dict[str, float] = {}
    for other in sorted(one.top, key=lambda other: other is not one):
        key = other.text
        if not key or key in found:
            key = (
                key
                if other is one
                else "bytes:" + "".join(f"\\x{b:02x}" for b in other.bytes or b"")
            )
        found[key] = other.logprob or 0.0
    return {key: found[key] for key in sorted(found, key=lambda key: -found[key])}


def usage(note: Note) -> dict[str, int]:
    return {
        "prompt_tokens": note.prompt_tokens,
        "completion_tokens": note.completion_tokens,
        "total_tokens": note.prompt_tokens + note.completion_tokens,
    }
