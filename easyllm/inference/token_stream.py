"""What answers have grown by, on its way from a generation to those who read them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from easyllm.inference.engine_protocol import EngineFailed, Step

StepBatch = Sequence[tuple[Any, Step | EngineFailed]]
"""What answers have grown by, each with what its taker knows it by."""


class StepSink(Protocol):
    """Takes what some answers have grown by, in the thread that generates. Those of equal takers
    are given to one of them, all at once."""

    def __call__(self, grown: StepBatch) -> None: ...


class StreamReader:
    """An answer under way as its reader sees it, in one event loop."""

    def __init__(self) -> None:
        self.begun = False
        """Whether anything has come."""
        self._loop = asyncio.get_running_loop()
        self._came: Step | EngineFailed | None = None
        self._reader: asyncio.Future[None] | None = None

    def hand_over(self, step: Step | EngineFailed) -> None:
        """Give the reader a step; those that come while it is busy become one."""
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
        """What the answer has grown by since the last call. Raises EngineFailed."""
        if self._came is None:
            self._reader = self._loop.create_future()
            await self._reader
        step, self._came = self._came, None
        if isinstance(step, EngineFailed):
            raise step
        assert step is not None
        return step


@dataclass(frozen=True)
class InLoop:
    """Takes them to an event loop of this process, where each is an ``StreamReader``; wakes it
    once."""

    loop: asyncio.AbstractEventLoop

    def __call__(self, grown: StepBatch) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(_hand_over, grown)


def _hand_over(grown: StepBatch) -> None:
    for arriving, step in grown:
        arriving.hand_over(step)
