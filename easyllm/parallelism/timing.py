"""Measures how the time of a training step is spent.

A clock is in one phase at a time, so the phases of a step add up to it. On CUDA they are measured
by events in the compute stream: communication that runs in parallel with computation is not
counted.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from easyllm.parallelism import deepspeed_internals

PHASES = ("data", "forward", "backward", "communication", "optimizer", "bubble")
"""``communication`` is between ranks and includes waiting for them; ``bubble`` is the time in which
a pipeline stage waits for another's activations or gradients."""

_NONE = "none"


class StepClock:
    """Measures the phases of a step, between ``start`` and ``stop``."""

    def __init__(self, device: torch.device):
        self.device = device
        self.running = False
        self.current = _NONE
        self.marks: list[tuple[str, Any]] = []

    def start(self) -> None:
        self.running, self.marks = True, []
        self._enter(_NONE)

    def stop(self) -> dict[str, float]:
        """Seconds by phase since ``start``."""
        self._enter(_NONE)
        self.running = False
        found = dict.fromkeys(PHASES, 0.0)
        if self.device.type == "cuda":
            self.marks[-1][1].synchronize()
        for (phase, begin), (_, end) in zip(self.marks, self.marks[1:], strict=False):
            if phase != _NONE:
                found[phase] += end - begin if isinstance(end, float) else _elapsed(begin, end)
        return found

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The block belongs to the phase ``name``. If it is within another phase, that one
        continues after it. Communication within a bubble counts as the bubble."""
        outer = self.current
        if not self.running or outer == name or outer == "bubble":
            yield
            return
        self._enter(name)
        try:
            yield
        finally:
            self._enter(outer)

    def _enter(self, name: str) -> None:
        self.current = name
        now: Any = time.perf_counter()
        if self.device.type == "cuda":
            now = torch.cuda.Event(enable_timing=True)
            # not the current one: DeepSpeed reduces gradients in a separate stream
            now.record(torch.cuda.default_stream(self.device))
        self.marks.append((name, now))

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, with each call counted in the phase ``name``."""

        def call(*arguments: Any, **named: Any) -> Any:
            with self.phase(name):
                return function(*arguments, **named)

        return call

    def watch_pipeline(self, runtime: Any) -> None:
        """Time the instructions of DeepSpeed's pipeline engine."""
        deepspeed_internals.wrap_instructions(runtime, self.timed)

    def watch_communication(self) -> None:
        """Time what DeepSpeed's backend sends and receives, with this clock and no earlier one."""
        deepspeed_internals.wrap_collectives(self._communicating)

    def _communicating(self, function: Callable[..., Any]) -> Callable[..., Any]:
        timed = self.timed("communication", function)

        def call(*arguments: Any, **named: Any) -> Any:
            handle = timed(*arguments, **named)
            return _Handle(handle, self) if named.get("async_op") and handle else handle

        return call


class _Handle:
    """A handle of asynchronous communication that times the wait for it."""

    def __init__(self, handle: Any, clock: StepClock):
        self._handle, self._clock = handle, clock

    def wait(self, *arguments: Any, **named: Any) -> Any:
        with self._clock.phase("communication"):
            return self._handle.wait(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


def _elapsed(begin: Any, end: Any) -> float:
    """Seconds between two events."""
    return float(begin.elapsed_time(end)) / 1000
