"""The base class of stages: what the dispatcher needs to order, skip, start and record them."""

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
    """The rank of this process among those of its stage."""

    index: int = 0
    count: int = 1
    local_index: int = 0
    local_count: int = 1
    reports: Path = Path()
    """The folder into which it writes why it failed."""

    @property
    def first(self) -> bool:
        return self.index == 0


class Interrupted(Exception):
    """Raised by a stage that was asked to stop, or has used up its time, and has saved its
    progress; the message says which."""


class Stage(abc.ABC):
    """One step from text to a served model.

    Its module imports the standard library only; ``work`` imports what it needs.
    """

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]
    """Dotted keys of the spec, or prefixes of them, that can change what the stage makes."""
    only_reads: ClassVar[bool] = False
    """Whether it only reads the run's directory, so that other commands may use it meanwhile."""

    def may_change(self, run: RunSpec, key: str) -> bool:
        """Whether the stage can continue from its results although ``key`` has changed since."""
        return False

    def record(self, run: RunSpec) -> str:
        """The name of the stage's record. A run has one for each place that the stage was asked to
        write to."""
        asked = self.asked(run)
        return f"{self.name}-{Path(asked).name}-{stable_hash(asked, 8)}" if asked else self.name

    def asked(self, run: RunSpec) -> str | None:
        """The place that the stage was asked to write to; None where it has its own place."""
        return None

    def ranks(self, run: RunSpec) -> int:
        """Number of processes of the stage."""
        return 1

    def require(self, run: RunSpec) -> None:  # noqa: B027  (most stages stand on nothing)
        """Raises UserError when the stage needs something that is missing and that no earlier stage
        of the run makes. Called before anything is started."""

    def fetches(self, run: RunSpec) -> bool:
        """Whether the stage reads files of ``model.path``, which may be on the hub."""
        return False

    def prepare(self, run: RunSpec) -> None:  # noqa: B027  (most stages need nothing)
        """Download what the stage needs to this machine. Called before its ranks are started, so
        that the time does not count as a hang. Raises UserError."""

    @abc.abstractmethod
    def inputs(self, run: RunSpec) -> Sequence[Path | str]:
        """Files, and URLs, that can change what the stage makes."""

    @abc.abstractmethod
    def outputs(self, run: RunSpec) -> list[Path]:
        """Files that exist once the stage is done. The first one shows that it is done."""

    def whole(self, run: RunSpec) -> bool:
        """Whether the stage's results look complete; its ``outputs`` are compared in addition."""
        return True

    def lost(self, run: RunSpec) -> str:
        """The results of the stage that are missing and cannot be made again; empty where none are.
        Called when the stage is skipped."""
        return ""

    @abc.abstractmethod
    def work(self, run: RunSpec, rank: Rank) -> Mapping[str, Any]:
        """Do the work. Rank 0's return value, plain numbers and strings, is written to the record.

        Raises UserError for what the user can fix, Interrupted after a signal.
        """

    @staticmethod
    def paths(run: RunSpec) -> RunPaths:
        return RunPaths(run)
