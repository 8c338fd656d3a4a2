"""Progress with rate and time left, the same for every stage."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from easyllm.heartbeat import beat

if TYPE_CHECKING:
    from tqdm import tqdm

ON_TERMINAL = "EASYLLM_ON_TERMINAL"
"""Set for ranks, whose output goes through a pipe, when the parent has a terminal."""

SCALED = ("B", "char", "tok")
"""Units that come in millions."""


def on_terminal() -> bool:
    return ON_TERMINAL in os.environ or sys.stderr.isatty()


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
        dynamic_ncols=True,
        disable=not visible,
    )
