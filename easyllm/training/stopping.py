"""Stopping at the end of a step when the machine asks for it, or time runs out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from easyllm.signals import handled


class Stopped(Exception):
    """Training stopped before its end, and has saved a checkpoint."""


class Stop:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.asked = False
        self.begun = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since this start of training."""
        return time.monotonic() - self.begun


@contextlib.contextmanager
def on_signals() -> Iterator[Stop]:
    """Within the block, SIGTERM and SIGUSR1, with which schedulers announce the end of a job, only
    mark the ``Stop`` that is yielded."""
    stop = Stop()

    def mark() -> None:
        stop.asked = True

    with handled(mark):
        yield stop
