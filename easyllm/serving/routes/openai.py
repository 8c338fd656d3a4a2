"""OpenAI's routes: models, completions, chat completions."""

from __future__ import annotations

import abc
import json
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from fastapi import APIRouter, Request

from easyllm.inference.detokenizer import Piece
from easyllm.inference.token_texts import TokenText
from easyllm.serving.errors import Refused, error_body
from easyllm.serving.routes.requests import ChatRequest, CompletionRequest, OpenAIRequest
from easyllm.serving.service import Ask, Note, Pieces, Service
from easyllm.serving.streaming import Last, Stream, unless_gone
from easyllm.spec.inference import SamplingSpec

EVENTS = "text/event-stream"
MARK = "\0"
"""A text that no answer is."""


def routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1")
    started = int(time.time())
    card = {"id": service.model, "object": "model", "created": started, "owned_by": "easyllm"}

    @router.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @router.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        _known(service, name)
        return card

    @router.post("/chat/completions", response_model=None)
    async def chat(asked: ChatRequest, request: Request) -> dict[str, Any] | Stream:
        _known(service, asked.model)
        prompts = [await service.messages(asked.messages)]
        sampling = asked.sampling(service.run.inference.sampling)
        shape = _Chat(service, asked, sampling)
        return await _respond(service, request, prompts, sampling, shape, asked.messages)

    @router.post("/completions", response_model=None)
    async def complete(asked: CompletionRequest, request: Request) -> dict[str, Any] | Stream:
        _known(service, asked.model)
        given = asked.prompts()
        limit = service.run.serving.max_batch
        if len(given) > limit:
            raise Refused(400, f"{len(given)} prompts: this server allows {limit} at most")
        prompts = await service.texts(given)
        if not prompts:
            raise Refused(400, "there is no prompt; give at least one", "prompt")
        sampling = asked.sampling(service.run.inference.sampling)
        shape = _Text(service, asked, sampling)
        return await _respond(service, request, prompts, sampling, shape, asked.prompt)

    return router


def _known(service: Service, name: str | None) -> None:
    if name not in (None, service.model):
        message = f"there is no model {name!r} here; this server has {service.model!r}"
        raise Refused(404, message, "model", "model_not_found")


async def _respond(
    service: Service,
    request: Request,
    prompts: list[list[int]],
    sampling: SamplingSpec,
    shape: _Shape,
    asked: Any,
) -> dict[str, Any] | Stream:
    note: Note = request.scope["easyllm.note"]
    asks = service.asks(prompts, sampling)
    if service.run.serving.log_prompts:
        note.prompt, note.answers = asked, [""] * len(asks)
    growing = service.answer(asks, note)
    if shape.asked.stream:
        # the first pieces come before the headers, so that a refusal has its status
        first = await unless_gone(request, anext(growing))  # type: ignore[arg-type]
        return Stream(_events(first, growing, asks, note, shape), EVENTS)
    return await unless_gone(request, _whole(growing, asks, note, shape))


async def _whole(
    growing: AsyncGenerator[Pieces, None], asks: Sequence[Ask], note: Note, shape: _Shape
) -> dict[str, Any]:
    answers = [_Answer() for _ in asks]
    async with aclosing(growing):
        async for pieces in growing:
            for index, piece in pieces:
                answers[index].grow(piece)
    if note.answers is not None:
        note.answers = [answer.text for answer in answers]
    choices = [shape.choice(index, answer) for index, answer in enumerate(answers)]
    return {**shape.head(), "object": shape.kind, "choices": choices, "usage": _usage(note)}


async def _events(
    first: Pieces,
    growing: AsyncGenerator[Pieces, None],
    asks: Sequence[Ask],
    note: Note,
    shape: _Shape,
) -> AsyncGenerator[bytes, None]:
    """Server-sent events: chunks, the usage where asked for, ``[DONE]``."""
    usage = {"usage": None} if shape.asked.usage_in_stream else {}
    head = {**shape.head(), "object": shape.chunk_kind, **usage}
    # a chunk is all the same but for its choices
    begin = "data: " + json.dumps(head)[:-1] + ', "choices": ['
    encode = json.JSONEncoder(separators=(",", ":")).encode

    def event(choice: dict[str, Any]) -> str:
        return f"{begin}{encode(choice)}]}}\n\n"

    # most chunks are a text and nothing else: what stands around it, by answer
    around = [
        "".join(map(event, shape.deltas(index, Piece(MARK, []), 0))).split(encode(MARK))
        for index in range(len(asks))
    ]
    lengths = [0] * len(asks)
    left = len(asks)

    def events(pieces: Pieces) -> bytes:
        nonlocal left
        parts: list[str] = []
        for index, piece in pieces:
            left -= piece.finish_reason is not None
            if note.answers is not None:
                note.answers[index] += piece.text
            if piece.text and not (shape.told or piece.finish_reason):
                before, after = around[index]
                parts.append(f"{before}{quoted(piece.text)}{after}")
            elif piece.text or piece.logprobs or piece.finish_reason:
                parts += map(event, shape.deltas(index, piece, lengths[index]))
            lengths[index] += sum(len(one.text) for one in piece.logprobs)
        if not left:
            if usage:
                last = {**head, "choices": [], "usage": _usage(note)}
                parts.append(f"data: {json.dumps(last)}\n\n")
            parts.append("data: [DONE]\n\n")
        data = "".join(parts).encode()
        return data if left else Last(data)

    async with aclosing(growing):
        opening = "".join(map(event, shape.opening(len(asks)))).encode()
        data = events(first)
        yield type(data)(opening + data)
        try:
            while left:
                if data := events(await anext(growing)):
                    yield data
        except Refused as error:  # too late for a status
            yield f"data: {json.dumps(error.body)}\n\n".encode()
        except Exception:
            yield f"data: {json.dumps(error_body(500, 'internal error'))}\n\n".encode()
            raise


@dataclass
class _Answer:
    """An answer gathered from its pieces."""

    text: str = ""
    logprobs: list[TokenText] = field(default_factory=list)
    finish_reason: str | None = None

    def grow(self, piece: Piece) -> None:
        self.text += piece.text
        self.logprobs += piece.logprobs
        self.finish_reason = piece.finish_reason


class _Shape(abc.ABC):
    """How a route writes its answers."""

    prefix: str
    kind: str
    chunk_kind: str

    def __init__(self, service: Service, asked: OpenAIRequest, sampling: SamplingSpec):
        self.asked = asked
        self.told = sampling.logprobs is not None
        self._head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": service.model,
        }

    def head(self) -> dict[str, Any]:
        return dict(self._head)

    @abc.abstractmethod
    def choice(self, index: int, answer: _Answer) -> dict[str, Any]:
        """A whole answer as a choice."""

    def opening(self, count: int) -> list[dict[str, Any]]:
        """Choices of the chunks that come before the first piece."""
        return []

    @abc.abstractmethod
    def deltas(self, index: int, piece: Piece, offset: int) -> list[dict[str, Any]]:
        """Choices of the chunks of a piece; ``offset`` is where its first token told begins."""


class _Chat(_Shape):
    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, index: int, answer: _Answer) -> dict[str, Any]:
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
        if not self.told:
            return None

        def entry(one: TokenText) -> dict[str, Any]:
            value = None if one.bytes is None else list(one.bytes)
            return {"token": one.text, "logprob": one.logprob, "bytes": value}

        content = [
            {**entry(one), "top_logprobs": [entry(other) for other in one.top]} for one in logprobs
        ]
        return {"content": content, "refusal": None}


class _Text(_Shape):
    prefix = "cmpl"
    kind = chunk_kind = "text_completion"

    def choice(self, index: int, answer: _Answer) -> dict[str, Any]:
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
        if not self.told:
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


def _by_text(one: TokenText) -> dict[str, float]:
    """The log-probabilities at a token's place. Tokens that would be written alike, as those
    that end within a character are, go by their bytes, the one that came excepted."""
    found: dict[str, float] = {}
    for other in sorted(one.top, key=lambda other: other is not one):
        key = other.text
        if not key or key in found:
            key = (
                key
                if other is one
                else "bytes:" + "".join(f"\\x{b:02x}" for b in other.bytes or b"")
            )
        found[key] = other.logprob
    return {key: found[key] for key in sorted(found, key=lambda key: -found[key])}


def _usage(note: Note) -> dict[str, int]:
    return {
        "prompt_tokens": note.prompt_tokens,
        "completion_tokens": note.completion_tokens,
        "total_tokens": note.prompt_tokens + note.completion_tokens,
    }
