"""Progress with rate and time left, the same for every stage."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from easyllm.heartbeat import beat

if TYPE_CHECKING:
    from tqdm import tqdm

ON_TERMINAL = "EASYLLM_ON_TERMINAL"
"""Variable with the columns of the parent's terminal, if it has one. It is set for ranks, whose
output goes through a pipe."""
WIDTH, NARROWEST = 80, 20
"""Columns of a line where no terminal gives them, and the smallest number that is accepted."""

SCALED = ("B", "char", "tok")
"""Units with large numbers, which are shown scaled."""


def on_terminal() -> bool:
    return ON_TERMINAL in os.environ or sys.stderr.isatty()


def columns(otherwise: int = WIDTH) -> int:
    """Columns of the terminal that standard error reaches; ``otherwise`` where there is none."""
    try:
        found = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):  # a pipe, a file, or an object in its place
        text = os.environ.get(ON_TERMINAL, "")
        found = int(text) if text.isdecimal() else 0
    return found if found > NARROWEST else otherwise


def progress(label: str, total: float | None, unit: str, visible: bool = True) -> tqdm[Any]:
    """A bar to be used as a context manager, with ``update(amount)``.

    Work of less than two seconds shows nothing; without a terminal a line is printed every ten
    seconds. Each update is a heartbeat, even if the bar is not visible.
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
