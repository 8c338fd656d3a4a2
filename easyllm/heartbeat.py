"""What takes long tells that it goes on, so that it is not taken for a hang. Light."""

from __future__ import annotations

from collections.abc import Callable

_listener: Callable[[], None] | None = None


def listen(listener: Callable[[], None] | None) -> None:
    """Have ``listener`` called at each beat of this process; None ends that."""
    global _listener
    _listener = listener


def beat() -> None:
    """Another part of a long piece of work is done: a file, a layer, a second of waiting for a
    process that is itself watched."""
    if _listener is not None:
        _listener()
