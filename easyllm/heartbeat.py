"""Long work reports its progress here, so that it is not taken for a hang. Light."""

from __future__ import annotations

from collections.abc import Callable

_listener: Callable[[], None] | None = None


def listen(listener: Callable[[], None] | None) -> None:
    """Call ``listener`` at each beat of this process; None ends that."""
    global _listener
    _listener = listener


def beat() -> None:
    """Report that another part of long work is done: a file, a layer, or a second of waiting for a
    process that is itself watched."""
    if _listener is not None:
        _listener()
