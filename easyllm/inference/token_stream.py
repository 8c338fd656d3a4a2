"""Passes the new tokens of answers from the thread that generates to their readers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from easyllm.inference.engine_protocol import EngineFailed, Step

StepBatch = Sequence[tuple[Any, Step | EngineFailed]]
"""The steps of some answers, each with the key by which its receiver knows the answer."""


class StepSink(Protocol):
    """Receives the steps of some answers, in the thread that generates. The steps for equal
    receivers are given to one of them, all at once."""

    def __call__(self, grown: StepBatch) -> None: ...


class StreamReader:
    """An answer under way for its reader, in one event loop."""

    def __init__(self) -> None:
        self.begun = False
        """Whether any step has come."""
        self._loop = asyncio.get_running_loop()
        self._came: Step | EngineFailed | None = None
        self._reader: asyncio.Future[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether a step waits to be read."""
        return self._came is not None

    def hand_over(self, step: Step | EngineFailed) -> None:
        """Give the reader a step; steps that come while it is busy are joined."""
        before, self.begun = self._came, True
        if isinstance(before, EngineFailed):
            return
        if before is not None and isinstance(step, Step):
            step.tokens = before.tokens + step.tokens
            step.logprobs = before.logprobs + step.logprobs
        self._came = step
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def next(self) -> Step:
        """The step of the answer since the last call. Raises EngineFailed."""
        if not self.ready:
            self._reader = self._loop.create_future()
            await self._reader
        step, self._came = self._came, None
        if isinstance(step, EngineFailed):
            raise step
        assert step is not None
        return step


@dataclass(frozen=True)
class InLoop:
    """Gives steps to an event loop of this process, where each key is a ``StreamReader``; wakes
    the loop once."""

    loop: asyncio.AbstractEventLoop

    def __call__(self, grown: StepBatch) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(_hand_over, grown)


def _hand_over(grown: StepBatch) -> None:
    for reader, step in grown:
        reader.hand_over(step)
