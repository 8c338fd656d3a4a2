"""SIGTERM and SIGUSR1, by which people and schedulers ask a process to stop. Light."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

NUMBERS = (signal.SIGTERM, signal.SIGUSR1)

STOPPED = 75
"""Exit status of what was asked to stop and can go on by the same command (EX_TEMPFAIL)."""


class Asked(BaseException):
    """This process was asked to stop where it had nothing to save first. As with Ctrl-C, no
    handler of errors is meant."""


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within the block the signals raise Asked in the main thread, to which Python brings them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Asked

    before = [signal.signal(number, stop) for number in NUMBERS]
    try:
        yield
    finally:
        for number, handler in zip(NUMBERS, before, strict=True):
            signal.signal(number, handler)
