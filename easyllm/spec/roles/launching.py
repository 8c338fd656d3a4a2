"""The role of components that start ranks."""

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
    """What the stages of one run use of a launcher."""

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
    machine have that machine's environment. From this machine they get the variables that ``env``
    and ``pass_env`` name and, where the launcher starts them, those that
    ``easyllm.launchers.remote.environment.NEEDED`` lists.
    """

    env: dict[str, str] = field(default_factory=dict)
    """Variables set for every rank, on all machines, e.g. ``NCCL_SOCKET_IFNAME: eth0``. They
    are written to ``run.yaml``: name secrets in ``pass_env`` instead."""
    pass_env: tuple[str, ...] = ()
    """Names of variables of this machine's environment that ranks on other machines get as well,
    with ``*`` for any text, e.g. ``WANDB_API_KEY`` or ``AWS_*``."""
    grace: NonNegativeFloat = 5.0
    """Seconds between SIGTERM and SIGKILL for ranks that must end because another one has
    failed."""

    def follow(self, nodes: int) -> int | None:
        """Serve another machine, which owns the run, until the run ends; returns the run's exit
        status. None where this machine owns the run.

        For launchers under which the same command is started on each of ``nodes`` machines.
        """
        return None

    def follows(self, nodes: int) -> bool:
        """Whether ``follow`` on this machine would serve another machine."""
        return False

    @contextlib.contextmanager
    def opened(self, nodes: int, status: Callable[[], int]) -> Iterator[Launch]:
        """What launches the stages of one run, on the machine that owns it. ``status`` gives the
        run's exit status at its end. Raises UserError where a machine cannot be reached."""
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
        """Run ``command`` on ``ranks`` ranks, the same number on each of ``nodes`` machines, until
        all have ended; returns the exit status.

        Each rank finds RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and
        MASTER_PORT in its environment. A word of ``command`` that names one of ``files`` is
        replaced on other machines by the name of a copy. Output goes to ``logs/rank-<n>.log`` on
        this machine, and rank 0's also to the terminal. When one rank fails, the others are ended,
        and the reason is in ``logs/error-<n>.json`` (``easyllm.launchers.reports``). The status of
        the rank that failed first is returned (128 + signal for a rank that was killed). Raises
        UserError where a machine cannot be reached.
        """
