"""Progress with rate and time left, the same for every stage."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from easyllm.heartbeat import beat

if TYPE_CHECKING:
    from tqdm import tqdm

ON_TERMINAL = "EASYLLM_ON_TERMINAL"
"""Set for ranks, whose output goes through a pipe, when the parent has a terminal, to its
columns."""
WIDTH, NARROWEST = 80, 20
"""Columns of a line where no terminal says, and those below which none is believed."""

SCALED = ("B", "char", "tok")
"""Units that come in millions."""


def on_terminal() -> bool:
    return ON_TERMINAL in os.environ or sys.stderr.isatty()


def columns(otherwise: int = WIDTH) -> int:
    """Columns of the terminal that standard error reaches; ``otherwise`` where there is none."""
    try:
        found = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):  # a pipe, a file, or what stands in for one
        text = os.environ.get(ON_TERMINAL, "")
        found = int(text) if text.isdecimal() else 0
    return found if found > NARROWEST else otherwise


def progress(label: str, total: float | None, unit: str, visible: bool = True) -> tqdm[Any]:
    """A bar to be used as a context manager, with ``update(amount)``.

    What takes under two seconds shows nothing; without a terminal a line comes every
    ten seconds. Each update is a heartbeat, of a bar that is not visible too.
    """
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc, type-arg]
        def update(self, n: float | None = 1) -> bool | None:
            beat()
            shown: bool | None = super().update(n)
            return shown

    return Bar(
        desc=label,
        total=total,
        unit=unit,
        unit_scale=unit in SCALED,
        delay=2,
        mininterval=0.2 if on_terminal() else 10,
        maxinterval=1 if on_terminal() else 10,
        dynamic_ncols=sys.stderr.isatty(),
        ncols=None if sys.stderr.isatty() else columns() - 1,
        disable=not visible,
    )
