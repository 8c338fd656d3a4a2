"""Stopping at the end of a step when the machine asks for it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Stopped(Exception):
    """Training stopped because it was asked to, and has saved a checkpoint."""


class Stop:
    """Whether this process was asked to stop."""

    asked = False


@contextlib.contextmanager
def on_sigterm() -> Iterator[Stop]:
    """Within the block SIGTERM only marks the ``Stop`` that is yielded."""
    stop = Stop()

    def mark(number: int, frame: FrameType | None) -> None:
        stop.asked = True

    before = signal.signal(signal.SIGTERM, mark)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
