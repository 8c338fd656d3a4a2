"""OpenAI's routes: models, completions, chat completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request

from easyllm.serving.answers import Ask, Pieces
from easyllm.serving.errors import Refused
from easyllm.serving.routes.openai_events import events
from easyllm.serving.routes.openai_formats import (
    Answer,
    ChatFormat,
    CompletionFormat,
    Format,
    usage,
)
from easyllm.serving.routes.requests import ChatRequest, CompletionRequest
from easyllm.serving.service import Note, Service
from easyllm.serving.streaming import Stream, unless_gone

EVENTS = "text/event-stream"


def routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1")
    started = int(time.time())
    card = {"id": service.model, "object": "model", "created": started, "owned_by": "easyllm"}

    @router.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @router.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return card

    @router.post("/chat/completions", response_model=None)
    async def chat(asked: ChatRequest, request: Request) -> dict[str, Any] | Stream:
        service.check_model(asked.model)
        prompts = [await service.messages(asked.messages)]
        sampling = asked.sampling(service.run.inference.sampling)
        format_ = ChatFormat(service, asked, sampling)
        asks = service.asks(prompts, sampling)
        return await _respond(service, request, asks, format_, asked.messages)

    @router.post("/completions", response_model=None)
    async def complete(asked: CompletionRequest, request: Request) -> dict[str, Any] | Stream:
        service.check_model(asked.model)
        given = asked.prompts()
        limit = service.run.serving.max_batch
        if len(given) > limit:
            raise Refused(400, f"{len(given)} prompts: this server allows {limit} at most")
        prompts = await service.texts(given)
        if not prompts:
            raise Refused(400, "there is no prompt; give at least one", "prompt")
        sampling = asked.sampling(service.run.inference.sampling)
        format_ = CompletionFormat(service, asked, sampling)
        asks = service.asks(prompts, sampling, given if asked.echo else ())
        return await _respond(service, request, asks, format_, asked.prompt)

    return router


async def _respond(
    service: Service,
    request: Request,
    asks: Sequence[Ask],
    format_: Format,
    asked: Any,
) -> dict[str, Any] | Stream:
    note: Note = request.scope["easyllm.note"]
    if service.run.serving.log_prompts:
        note.prompt, note.answers = asked, [""] * len(asks)
    growing = service.answer(asks, note)
    if format_.asked.stream:
        # the first pieces come before the headers, so that a refusal has its status
        first = await unless_gone(request, anext(growing))  # type: ignore[arg-type]
        return Stream(events(first, growing, len(asks), note, format_), EVENTS)
    return await unless_gone(request, _complete(growing, asks, note, format_))


async def _complete(
    growing: AsyncGenerator[Pieces, None], asks: Sequence[Ask], note: Note, format_: Format
) -> dict[str, Any]:
    answers = [Answer() for _ in asks]
    async with aclosing(growing):
        async for pieces in growing:
            for index, piece in pieces:
                answers[index].grow(piece)
    if note.answers is not None:
        note.answers = [answer.text for answer in answers]
    choices = [format_.choice(index, answer) for index, answer in enumerate(answers)]
    return {**format_.head(), "object": format_.kind, "choices": choices, "usage": usage(note)}
