"""How a launcher is asked to stop: by a signal or by Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from easyllm.signals import handled

SAVING = b"\neasyllm | Ctrl-C: stops once what is done is saved; press it again to stop at once\n"


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGUSR1 sets while the block runs."""
    asked = threading.Event()
    with handled(asked.set):
        yield asked


@contextlib.contextmanager
def ctrl_c(asked: threading.Event) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, together with ``asked``, while the block runs; the
    second Ctrl-C raises KeyboardInterrupt."""
    pressed = threading.Event()
    ordinary = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not ordinary or threading.current_thread() is not threading.main_thread():
        yield pressed  # the caller handles Ctrl-C itself
        return

    def press(*_: object) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        asked.set()
        # a print could interrupt another one, which Python refuses
        with contextlib.suppress(OSError):
            os.write(2, SAVING)

    signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
