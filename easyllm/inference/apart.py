"""An engine that is asked from another process: the two ends of a pipe.

Python runs one thread at a time, and a generation of many small operations asks for its turn
after each of them. Whoever has many clients to write to keeps it waiting, unless from a process
of their own.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Protocol

from easyllm.inference.arriving import Arriving, Grown, Taker
from easyllm.inference.engines import EngineFailed, Step, room
from easyllm.spec.inference import SamplingSpec


class Generation(Protocol):
    """What an engine is asked by."""

    def begin(
        self, request: str, prompt: Sequence[int], sampling: SamplingSpec, take: Taker, to: Any
    ) -> None:
        """Begin an answer; ``take`` is given what it grows by, with ``to``. Raises
        EngineFailed."""

    def leave(self, request: str) -> None:
        """Forget an answer, and end it where it is under way."""


class Host:
    """Lets those at the other end of a pipe ask an engine of this process."""

    def __init__(self, engine: Generation, pipe: Connection):
        self.told: dict[str, Any] = {}
        """What they have told besides, by its name."""
        self._engine, self._pipe = engine, pipe
        self._sending = threading.Lock()

    def listen(self) -> None:
        """Do what is asked until the other end is closed."""
        while True:
            try:
                kind, what = self._pipe.recv()
            except (EOFError, OSError):
                return
            if kind == "ask":
                self._begin(*what)
            elif kind == "leave":
                self._engine.leave(what)
            else:
                self.told[kind] = what

    def tell(self, kind: str, what: Any = None) -> None:
        """Send a message; nothing where nobody listens any more."""
        with self._sending, suppress(OSError):
            self._pipe.send((kind, what))

    def _begin(self, request: str, prompt: list[int], sampling: SamplingSpec) -> None:
        try:
            self._engine.begin(request, prompt, sampling, self._take, request)
        except Exception as error:  # else the one who asks would wait for ever
            self.tell("grown", [(request, EngineFailed(str(error)))])

    def _take(self, grown: Grown) -> None:
        for request, step in grown:
            if isinstance(step, EngineFailed) or step.finish_reason:
                self._engine.leave(request)
        self.tell("grown", grown)


class RemoteEngine:
    """The ``easyllm.inference.engines.Engine`` at the other end of a pipe, in one event loop.

    The loop's owner reads the pipe, and calls ``take`` for what has ``grown``.
    """

    def __init__(self, pipe: Connection, tokenizer: Any, max_positions: int):
        self.tokenizer, self.max_positions = tokenizer, max_positions
        self.failed = False
        self._pipe = pipe
        self._answers: dict[str, Arriving] = {}
        self._names = map(str, itertools.count())

    async def generate(
        self, prompt: Sequence[int], sampling: SamplingSpec
    ) -> AsyncGenerator[Step, None]:
        room(self, prompt, sampling)
        if self.failed:
            raise EngineFailed("the engine has stopped")
        request, finished = next(self._names), False
        arriving = self._answers[request] = Arriving()
        try:
            self._tell("ask", (request, list(prompt), sampling))
            while not finished:
                step = await arriving.next()
                finished = step.finish_reason is not None
                yield step
        finally:
            del self._answers[request]
            if not finished:
                self._tell("leave", request)

    def _tell(self, kind: str, what: Any) -> None:
        try:
            self._pipe.send((kind, what))
        except OSError:
            self.fail()

    def take(self, grown: Grown) -> None:
        for request, step in grown:
            if arriving := self._answers.get(request):  # else it was left meanwhile
                arriving.hand_over(step)

    def fail(self) -> None:
        """End all answers: the engine has broken down."""
        self.failed = True
        for arriving in self._answers.values():
            arriving.hand_over(EngineFailed("the engine has stopped"))

    @property
    def waiting(self) -> int:
        return sum(not arriving.begun for arriving in self._answers.values())

    def close(self) -> None:
        self._pipe.close()
