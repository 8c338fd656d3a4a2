"""The role of what starts ranks."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from easyllm.spec.roles.base import Component
from easyllm.spec.types import NonNegativeFloat

if TYPE_CHECKING:
    pass


class Launch(Protocol):
    """What a launcher is to the stages of one run."""

    def launch(
        self,
        command: Sequence[str],
        ranks: int,
        logs: Path,
        env: Mapping[str, str],
        *,
        nodes: int,
        files: Sequence[Path],
    ) -> int:
        """As ``Launcher.launch``."""


@dataclass(frozen=True, kw_only=True)
class Launcher(Component):
    """How the ranks of a stage are started, watched and ended.

    Ranks on this machine have its environment, as any child process has. Ranks on another
    have that machine's own; of this one they get what ``env`` and ``pass_env`` name, and, where the
    launcher starts them, what ``easyllm.launchers.remote.environment.NEEDED`` lists.
    """

    env: dict[str, str] = field(default_factory=dict)
    """Variables set for every rank, on all machines, e.g. ``NCCL_SOCKET_IFNAME: eth0``. They
    stand in ``run.yaml``: name secrets in ``pass_env`` instead."""
    pass_env: tuple[str, ...] = ()
    """Names of variables of this environment that ranks on other machines get as well, with
    ``*`` for any text, e.g. ``WANDB_API_KEY`` or ``AWS_*``."""
    grace: NonNegativeFloat = 5.0
    """Seconds between SIGTERM and SIGKILL for ranks that must end since another one has failed."""

    def follow(self, nodes: int) -> int | None:
        """Serve another machine that owns the run until that ends; returns the run's exit
        status. None where this machine owns it.

        For launchers under which the same command is started on each of ``nodes`` machines.
        """
        return None

    def follows(self, nodes: int) -> bool:
        """Whether this machine is one that ``follow`` serves another from."""
        return False

    @contextlib.contextmanager
    def opened(self, nodes: int, status: Callable[[], int]) -> Iterator[Launch]:
        """What launches the stages of one run, on the machine that owns it. ``status`` tells at
        the end how the run ended. Raises UserError where a machine cannot be reached."""
        yield self

    @abc.abstractmethod
    def launch(
        self,
        command: Sequence[str],
        ranks: int,
        logs: Path,
        env: Mapping[str, str],
        *,
        nodes: int = 1,
        files: Sequence[Path] = (),
    ) -> int:
        """Run ``command`` on ``ranks`` ranks, as many on each of ``nodes`` machines, until all
        have ended; returns the exit status.

        Each rank finds RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and
        MASTER_PORT in its environment. Words of ``command`` that name one of ``files`` name a
        copy of it on other machines. Output goes to ``logs/rank-<n>.log`` here, rank 0's to
        the terminal as well. When one rank fails the others are ended, and why is in
        ``logs/error-<n>.json`` (``easyllm.launchers.reports``). The status of the rank that
        failed first is returned (128 + signal for a rank that was killed). Raises UserError
        where a machine cannot be reached.
        """
