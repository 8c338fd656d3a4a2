"""The HTTP application around one loaded model."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse

from easyllm.errors import UserError
from easyllm.inference.engines import Completion, Generator, room
from easyllm.inference.prompts import decode
from easyllm.serving.requests import GenerateRequest
from easyllm.spec.run import SamplingSpec

Encode = Callable[[Sequence[Mapping[str, str]]], list[int]]

CLIENT_LEFT = 499
"""nginx's status for a client that did not wait; nobody reads it."""


class Service:
    """Completes the prompts of concurrent requests with one model.

    Each request has a thread while it generates, ``together`` of them at a time, so that a
    short request does not wait for a long one to end; the others wait for their turn.
    """

    def __init__(
        self,
        generator: Generator,
        encode: Encode,
        sampling: SamplingSpec,
        seed: int,
        together: int,
    ):
        self.generator = generator
        self.encode = encode
        self.sampling = sampling
        self.seed = seed
        self.requests = 0
        """Requests accepted so far."""
        self.tokens = 0
        """Tokens generated so far."""
        self._threads = ThreadPoolExecutor(together, thread_name_prefix="generate")

    def start(self, request: GenerateRequest) -> AsyncGenerator[Completion, None]:
        """The growing answer to a request. Raises UserError for an unusable prompt."""
        sampling = request.sampling.over(self.sampling)
        if sampling.seed is None:
            # The same question gets a new answer each time, the same ones each time the
            # server is started.
            sampling = dataclasses.replace(sampling, seed=self.seed + self.requests)
        prompt = self.encode(request.messages)
        room(self.generator, prompt, sampling)  # raises while the status can still say so
        self.requests += 1
        return self._completions(prompt, sampling)

    async def _completions(
        self, prompt: Sequence[int], sampling: SamplingSpec
    ) -> AsyncGenerator[Completion, None]:
        loop = asyncio.get_running_loop()
        grown: asyncio.Queue[Completion | None] = asyncio.Queue()
        gone = threading.Event()

        def tell(completion: Completion) -> bool:
            if not gone.is_set():
                loop.call_soon_threadsafe(grown.put_nowait, completion)
            return not gone.is_set()

        work = loop.run_in_executor(self._threads, self.generator.stream, prompt, sampling, tell)
        work.add_done_callback(lambda _: grown.put_nowait(None))
        told = 0
        try:
            while completion := await grown.get():
                self.tokens += len(completion.tokens) - told
                told = len(completion.tokens)
                yield completion
            await work  # raises what the thread raised
        finally:
            gone.set()
            work.cancel()  # where it still waits for a thread

    def text(self, completion: Completion) -> str:
        """The words of an answer so far."""
        text = decode(self.generator.tokenizer, completion.tokens)
        # While it grows, the last character's last bytes may be still to come.
        return text if completion.finish_reason else text.rstrip("\ufffd")

    def close(self) -> None:
        """Wait for the steps that are under way."""
        self._threads.shutdown(cancel_futures=True)


def application(service: Service, model: str) -> FastAPI:
    """``POST /generate`` and ``GET /health`` for a model called ``model``."""
    app = FastAPI(title="easyllm")

    @app.exception_handler(RequestValidationError)
    async def refused(_request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": _described(error)}, 422)

    @app.exception_handler(UserError)
    async def unusable(_request: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 400)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": model}

    @app.post("/generate", response_model=None)
    async def generate(asked: GenerateRequest, request: Request) -> Response | dict[str, Any]:
        """Answer a conversation: ``{"text": [ANSWER]}``, or with ``stream`` a NUL-terminated
        object of that shape each time the answer has grown."""
        answer = service.start(asked)
        if asked.stream:
            return StreamingResponse(_chunks(service, answer))
        text = ""
        async with aclosing(answer):
            async for completion in answer:
                if await request.is_disconnected():
                    return Response(status_code=CLIENT_LEFT)
                if completion.finish_reason:
                    text = service.text(completion)
        return {"text": [text]}

    return app


async def _chunks(
    service: Service, answer: AsyncGenerator[Completion, None]
) -> AsyncIterator[bytes]:
    sent = ""
    async with aclosing(answer):
        async for completion in answer:
            text = service.text(completion)
            if text != sent or completion.finish_reason:
                yield json.dumps({"text": [text]}, ensure_ascii=False).encode() + b"\0"
                sent = text


def _described(error: RequestValidationError) -> str:
    """A line for each mistake in a request: where it is and what is wrong."""
    lines = []
    for mistake in error.errors():
        place = ".".join(str(part) for part in mistake["loc"][1:])
        message = mistake["msg"].removeprefix("Value error, ")  # pydantic's, of our own checks
        lines.append(f"{place}: {message}" if place else message)
    return "\n".join(lines)
