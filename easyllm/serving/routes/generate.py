"""``POST /generate``: the original's route."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request

from easyllm.serving.answers import Pieces
from easyllm.serving.errors import Refused
from easyllm.serving.routes.requests import GenerateRequest, Sampling
from easyllm.serving.service import Note, Service
from easyllm.serving.streaming import Stream, unless_gone


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/generate", response_model=None)
    async def generate(asked: GenerateRequest, request: Request) -> dict[str, list[str]] | Stream:
        """Answer a conversation: ``{"text": [ANSWER]}``, or with ``stream`` a NUL-terminated
        object of that shape with all of the text so far, each time the answer has grown."""
        note: Note = request.scope["easyllm.note"]
        prompt = await service.messages(asked.messages)
        sampling = (asked.sampling or Sampling()).over(service.run.inference.sampling)
        asks = service.asks([prompt], sampling)
        growing = _texts(service.answer(asks, note), len(asks))
        if service.run.serving.log_prompts:
            note.prompt = asked.messages
        if asked.stream:
            first = await unless_gone(request, anext(growing))  # type: ignore[arg-type]
            return Stream(_objects(first, growing, note), "application/octet-stream")
        texts = await unless_gone(request, _last(growing))
        if note.prompt is not None:
            note.answers = texts
        return {"text": texts}

    return router


async def _texts(
    growing: AsyncGenerator[Pieces, None], count: int
) -> AsyncGenerator[list[str], None]:
    """The texts so far, each time one of them has grown, and once at the end."""
    texts, last = [""] * count, None
    async with aclosing(growing):
        async for pieces in growing:
            for index, piece in pieces:
                texts[index] += piece.text
            if texts != last:
                last = list(texts)
                yield last
    if last is None or last == [""] * count:
        yield list(texts)


async def _last(growing: AsyncGenerator[list[str], None]) -> list[str]:
    last: list[str] = []
    async with aclosing(growing):
        async for texts in growing:
            last = texts
    return last


async def _objects(
    first: list[str], growing: AsyncGenerator[list[str], None], note: Note
) -> AsyncGenerator[bytes, None]:
    def whole(content: dict[str, Any]) -> bytes:
        return json.dumps(content, ensure_ascii=False).encode() + b"\0"

    async with aclosing(growing):
        yield whole({"text": first})
        try:
            async for texts in growing:
                if note.prompt is not None:
                    note.answers = texts
                yield whole({"text": texts})
        except Refused as error:  # too late for a status
            yield whole(error.body)
