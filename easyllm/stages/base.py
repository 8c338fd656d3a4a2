"""What a stage declares, so that the dispatcher can order, skip, start and record it."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from easyllm.files import stable_hash
from easyllm.paths import RunPaths
from easyllm.spec.run import RunSpec


@dataclass(frozen=True)
class Rank:
    """This process among those of its stage."""

    index: int = 0
    count: int = 1
    local_index: int = 0
    local_count: int = 1
    reports: Path = Path()
    """Where it leaves why it failed."""

    @property
    def first(self) -> bool:
        return self.index == 0


class Interrupted(Exception):
    """Raised by a stage that was asked to stop, or has spent its time, and has saved what it
    had; the message says which."""


class Stage(abc.ABC):
    """One step from text to a served model.

    Its module imports the standard library only; ``work`` imports what it needs.
    """

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]
    """Dotted keys of the spec, or prefixes of them, that can change what the stage makes."""

    def may_change(self, run: RunSpec, key: str) -> bool:
        """Whether the stage can go on from what it left though ``key`` has changed since."""
        return False

    def record(self, run: RunSpec) -> str:
        """The name of the stage's record, of which a run has one for each place that the stage
        was asked to write to."""
        asked = self.asked(run)
        return f"{self.name}-{Path(asked).name}-{stable_hash(asked, 8)}" if asked else self.name

    def asked(self, run: RunSpec) -> str | None:
        """The place that the stage was asked to write to; None where it has one of its own."""
        return None

    def ranks(self, run: RunSpec) -> int:
        """Processes the stage runs on."""
        return 1

    def require(self, run: RunSpec) -> None:  # noqa: B027  (most stages stand on nothing)
        """Raises UserError when the stage stands on something that is not there and that no
        earlier stage of the run makes. Called before anything is started."""

    def fetches(self, run: RunSpec) -> bool:
        """Whether the stage takes files of ``model.path``, which may be on the hub."""
        return False

    def prepare(self, run: RunSpec) -> None:  # noqa: B027  (most stages need nothing)
        """Bring to this machine what the stage needs from elsewhere. Called before its ranks are
        started, where time does not count as a hang's. Raises UserError."""

    @abc.abstractmethod
    def inputs(self, run: RunSpec) -> Sequence[Path | str]:
        """Files, and URLs, that can change what the stage makes."""

    @abc.abstractmethod
    def outputs(self, run: RunSpec) -> list[Path]:
        """Files that are there once the stage is done: the one by which that is known first."""

    def whole(self, run: RunSpec) -> bool:
        """Whether what the stage made looks whole; its ``outputs`` are compared besides."""
        return True

    def lost(self, run: RunSpec) -> str:
        """What of the stage's results is gone and cannot be made again; empty where nothing is.
        Asked where the stage is passed over."""
        return ""

    @abc.abstractmethod
    def work(self, run: RunSpec, rank: Rank) -> Mapping[str, Any]:
        """Do it. Rank 0's return value, plain numbers and strings, goes into the record.

        Raises UserError for what the user can fix, Interrupted after a signal.
        """

    @staticmethod
    def paths(run: RunSpec) -> RunPaths:
        return RunPaths(run)
