"""The launcher that is chosen by the environment in which a run is started."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from easyllm.errors import UserError
from easyllm.launchers.local import Local
from easyllm.launchers.rendezvous import MASTER, RANK, Rendezvous
from easyllm.launchers.slurm import Slurm
from easyllm.launchers.ssh import HOSTFILE, Ssh
from easyllm.spec.problems import Problem
from easyllm.spec.roles import Launch, Launcher
from easyllm.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class Auto(Launcher):
    """``Local`` for one machine. For several: ``Rendezvous`` where a cluster or srun starts the
    command on each (NODE_RANK or PET_NODE_RANK with MASTER_ADDR, or a Slurm step on several
    nodes); ``Slurm`` in the batch script of a Slurm job; ``Ssh`` where there is a
    ``/job/hostfile``.
    """

    def missing(self, key: str, run: RunSpec) -> Iterator[Problem]:
        found = self.chosen(run.hardware.nodes)
        if found is None:
            yield Problem(
                "hardware.nodes", run.hardware.nodes,
                "it is not known how to reach the other machines: no NODE_RANK and MASTER_ADDR, "
                f"no Slurm job, no {HOSTFILE}",
                f"name a launcher in {key}._target_, e.g. easyllm.launchers.ssh.Ssh with "
                f"{key}.hostfile=<file>, or choose hardware of one node",
                also=(key,),
            )  # fmt: skip
        else:
            yield from found.missing(key, run)

    def chosen(self, nodes: int) -> Launcher | None:
        """The launcher for ``nodes`` machines; None where it is not known."""
        own = {"env": self.env, "pass_env": self.pass_env, "grace": self.grace}
        there = os.environ.keys()
        if nodes == 1:
            return Local(**own)  # type: ignore[arg-type]
        in_step = os.environ.get("SLURM_STEP_NUM_NODES", "1") != "1"
        if (set(RANK[:2]) & there and set(MASTER) & there) or in_step:
            return Rendezvous(**own)  # type: ignore[arg-type]
        if "SLURM_JOB_ID" in there:
            return Slurm(**own)  # type: ignore[arg-type]
        return Ssh(**own) if Path(HOSTFILE).exists() else None  # type: ignore[arg-type]

    def _sure(self, nodes: int) -> Launcher:
        if (found := self.chosen(nodes)) is None:
            raise UserError(f"hardware.nodes={nodes}: it is not known how to reach them")
        return found

    def follows(self, nodes: int) -> bool:
        found = self.chosen(nodes)
        return found is not None and found.follows(nodes)

    def follow(self, nodes: int) -> int | None:
        return self._sure(nodes).follow(nodes)

    @contextlib.contextmanager
    def opened(self, nodes: int, status: Callable[[], int]) -> Iterator[Launch]:
        found = self.chosen(nodes)
        if found is None:  # stages of one rank do not need it
            yield self
            return
        with found.opened(nodes, status) as launch:
            yield launch

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
        return self._sure(nodes).launch(command, ranks, logs, env, nodes=nodes, files=files)
