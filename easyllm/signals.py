"""SIGTERM and SIGUSR1, with which users and schedulers ask a process to stop. Light."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

NUMBERS = (signal.SIGTERM, signal.SIGUSR1)


class Asked(BaseException):
    """This process was asked to stop where it had nothing to save. As with Ctrl-C, error handlers
    must not catch it."""


@contextlib.contextmanager
def handled(handler: Callable[[], None]) -> Iterator[None]:
    """Within the block the signals call ``handler``. In threads other than the main thread, where
    Python allows no handlers, the block changes nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.signal(number, lambda *_: handler()) for number in NUMBERS]
    try:
        yield
    finally:
        for number, old in zip(NUMBERS, before, strict=True):
            signal.signal(number, old)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within the block the signals raise Asked."""

    def stop() -> None:
        raise Asked

    with handled(stop):
        yield
