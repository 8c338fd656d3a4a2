"""An engine that another process uses.

Python runs one thread at a time, and a generation of many small operations needs its turn after
each of them. A thread that writes to many clients delays the generation, so it runs in a separate
process.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

from easyllm.errors import UserError
from easyllm.inference.engine_protocol import EngineFailed, Step, TokenLogprob, room
from easyllm.inference.ipc import Wire
from easyllm.inference.token_stream import StepBatch, StepSink, StreamReader
from easyllm.spec.inference import SamplingSpec


class Generation(Protocol):
    """The methods of an engine that a remote process uses."""

    def begin(
        self, request: str, prompt: Sequence[int], sampling: SamplingSpec, take: StepSink, to: Any
    ) -> None:
        """Begin an answer; ``take`` is given its steps, with ``to``. Raises EngineFailed."""

    def leave(self, request: str) -> None:
        """Forget an answer, and end it where it is under way."""

    def scored(self, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
        """``easyllm.inference.engine_protocol.Engine.score``, in any thread."""


class EngineServer:
    """Lets the process at the other end of a wire use an engine of this process."""

    def __init__(self, engine: Generation, wire: Wire):
        self.messages: dict[str, Any] = {}
        """The other messages that it has sent, by name."""
        self._engine, self._wire = engine, wire
        self._sending = threading.Lock()
        self._scorer = ThreadPoolExecutor(1, thread_name_prefix="score")

    def listen(self) -> None:
        """Handle messages until the other end is closed."""
        while True:
            try:
                kind, what = self._wire.receive()
            except (EOFError, OSError):
                return
            if kind == "ask":
                self._begin(*what)
            elif kind == "leave":
                self._engine.leave(what)
            elif kind == "score":
                self._scorer.submit(self._score, *what)
            else:
                self.messages[kind] = what

    def tell(self, kind: str, what: Any = None) -> None:
        """Send a message; does nothing where the other end is closed."""
        with self._sending, suppress(OSError):
            self._wire.send((kind, what))

    def _begin(self, request: str, prompt: list[int], sampling: SamplingSpec) -> None:
        try:
            self._engine.begin(request, prompt, sampling, self._take, request)
        except Exception as error:  # else the process that asks would wait forever
            self.tell("grown", [(request, EngineFailed(str(error)))])

    def _score(self, request: str, tokens: list[int], top: int) -> None:
        found: list[TokenLogprob] | Exception
        try:
            found = self._engine.scored(tokens, top)
        except UserError as error:
            found = error
        except Exception as error:  # else the process that asks would wait forever
            found = EngineFailed(str(error))
        self.tell("scored", (request, found))

    def _take(self, grown: StepBatch) -> None:
        for request, step in grown:
            if isinstance(step, EngineFailed) or step.finish_reason:
                self._engine.leave(request)
        self.tell("grown", grown)


class RemoteEngine:
    """The ``easyllm.inference.engine_protocol.Engine`` of another process, in one event loop.

    ``send`` sends its messages there, and does not wait. The receiver of messages from there calls
    ``take`` for the steps of answers, and ``fail`` when nothing more will come.
    """

    def __init__(self, send: Callable[[Any], None], tokenizer: Any, max_positions: int):
        self.tokenizer, self.max_positions = tokenizer, max_positions
        self.failed = False
        self._send = send
        self._answers: dict[str, StreamReader] = {}
        self._scores: dict[str, asyncio.Future[list[TokenLogprob]]] = {}
        self._names = map(str, itertools.count())

    async def generate(
        self, prompt: Sequence[int], sampling: SamplingSpec
    ) -> AsyncGenerator[Step, None]:
        room(self, prompt, sampling)
        if self.failed:
            raise EngineFailed("the engine has stopped")
        request, finished = next(self._names), False
        reader = self._answers[request] = StreamReader()
        try:
            self._send(("ask", (request, list(prompt), sampling)))
            while not finished:
                step = await reader.next()
                finished = step.finish_reason is not None
                yield step
        finally:
            del self._answers[request]
            if not finished:
                self._send(("leave", request))

    async def score(self, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
        room(self, tokens, SamplingSpec())
        if self.failed:
            raise EngineFailed("the engine has stopped")
        request = next(self._names)
        self._scores[request] = asyncio.get_running_loop().create_future()
        try:
            self._send(("score", (request, list(tokens), top)))
            return await self._scores[request]
        finally:
            del self._scores[request]

    def take_score(self, request: str, found: list[TokenLogprob] | Exception) -> None:
        scores = self._scores.get(request)
        if scores is None or scores.done():  # the caller has left it
            return
        if isinstance(found, Exception):
            scores.set_exception(found)
        else:
            scores.set_result(found)

    def take(self, grown: StepBatch) -> None:
        for request, step in grown:
            if reader := self._answers.get(request):  # else the caller has left it
                reader.hand_over(step)

    def fail(self) -> None:
        """End all answers: the engine has failed."""
        self.failed = True
        for reader in self._answers.values():
            reader.hand_over(EngineFailed("the engine has stopped"))
        for request in self._scores:
            self.take_score(request, EngineFailed("the engine has stopped"))

    @property
    def waiting(self) -> int:
        return sum(not reader.begun for reader in self._answers.values())

    @property
    def unfinished(self) -> int:
        return len(self._answers)

    def close(self) -> None:
        """The other process closes it."""
