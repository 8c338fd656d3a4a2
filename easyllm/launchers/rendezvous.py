"""Ranks on machines that each run the same command, as under torchrun."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from easyllm.launchers.local import Local
from easyllm.launchers.multi_node import AgentRendezvous, Machines, own_address
from easyllm.launchers.remote.agent import serve
from easyllm.launchers.remote.environment import passed
from easyllm.launchers.remote.handshake import with_secret
from easyllm.spec.problems import Problem
from easyllm.spec.roles import Launch, Launcher
from easyllm.spec.run import RunSpec
from easyllm.spec.types import NonNegativeInt, Port, PositiveFloat

RANK = ("NODE_RANK", "PET_NODE_RANK", "SLURM_NODEID")
COUNT = ("NNODES", "PET_NNODES", "SLURM_STEP_NUM_NODES")
MASTER = ("MASTER_ADDR", "PET_MASTER_ADDR")
PORT = ("MASTER_PORT", "PET_MASTER_PORT")
JOB = ("PET_RDZV_ID", "SLURM_JOB_ID")
"""Variables that clusters set: plain, torchrun's own (PET_), Slurm's inside srun."""


@dataclass(frozen=True, kw_only=True)
class Rendezvous(Launcher):
    """For a command that is started on every machine, for example by a cluster's job controller.

    Machine 0 owns the run: it does the data stages, writes ``run_dir`` and sends the resolved spec
    to the others, which serve it and end with its exit status. Fields that are null are read from
    the environment. Machine 0 and the others accept nothing from each other unless both know the
    job and the environment variable EASYLLM_SECRET. Without that variable, as with torchrun, anyone
    who can reach the port and knows the job can take part, and anyone who listens at machine 0's
    address can start commands on the others: set it, or keep the port within the cluster.
    """

    node_rank: NonNegativeInt | None = None
    """This machine's number from 0; NODE_RANK, PET_NODE_RANK or SLURM_NODEID when null."""
    address: str | None = None
    """Name or address of machine 0; MASTER_ADDR, PET_MASTER_ADDR or the first node of
    SLURM_STEP_NODELIST when null."""
    port: Port | None = None
    """Port on which machine 0 waits for the others; MASTER_PORT, PET_MASTER_PORT or 29400 when
    null."""
    job: str | None = None
    """A name that distinguishes this run's machines from another run's; PET_RDZV_ID, SLURM_JOB_ID
    or ``easyllm`` when null."""
    join_timeout_s: PositiveFloat = 600.0
    """Seconds that the machines wait for each other at the start."""

    def missing(self, key: str, run: RunSpec) -> Iterator[Problem]:
        nodes, rank = run.hardware.nodes, self._rank()
        if rank is None:
            yield Problem(
                f"{key}.node_rank", None, "this machine's number is not known: none of "
                f"{', '.join(RANK)} is set", f"give {key}.node_rank=0 here, 1 on the next machine",
            )  # fmt: skip
        elif rank >= nodes:
            yield Problem(
                f"{key}.node_rank", rank, f"the run is on {nodes} machines, numbered from 0",
                "give hardware.nodes=<how many machines run this command>",
                also=("hardware.nodes",),
            )  # fmt: skip
        stated = _first(COUNT)
        if stated and stated.isdecimal() and int(stated) != nodes:
            yield Problem(
                "hardware.nodes", nodes, f"the environment says that {stated} machines run this",
                f"give hardware.nodes={stated}",
            )  # fmt: skip
        if not (self.address or _first(MASTER) or "SLURM_STEP_NODELIST" in os.environ):
            yield Problem(
                f"{key}.address", None, "machine 0 is not known: MASTER_ADDR is not set",
                f"give {key}.address=<name or address of machine 0>",
            )  # fmt: skip

    def _rank(self) -> int | None:
        if self.node_rank is not None:
            return self.node_rank
        stated = _first(RANK)
        return int(stated) if stated and stated.isdecimal() else None

    def _place(self) -> tuple[str, int, str]:
        """Machine 0's address and port, and the job."""
        address = self.address or _first(MASTER)
        if address is None:
            from easyllm.launchers.slurm import hostnames, node_address

            address = node_address(hostnames(os.environ["SLURM_STEP_NODELIST"])[0])
        port = _first(PORT)
        number = int(port) if port and port.isdecimal() else 29400
        return address, self.port or number, self.job or _first(JOB) or "easyllm"

    def follows(self, nodes: int) -> bool:
        return nodes > 1 and bool(self._rank())

    def follow(self, nodes: int) -> int | None:
        if not self.follows(nodes):
            return None
        address, port, job = self._place()
        token = with_secret(job)
        return serve(address, port, token, int(self._rank() or 0) - 1, self.join_timeout_s)

    @contextlib.contextmanager
    def opened(self, nodes: int, status: Callable[[], int]) -> Iterator[Launch]:
        if nodes == 1:
            yield Local(env=self.env, pass_env=self.pass_env, grace=self.grace)
            return
        address, port, job = self._place()
        gathering = AgentRendezvous(own_address(address), port, with_secret(job))
        agents = gathering.agents([None] * (nodes - 1), self.join_timeout_s)
        env_there = passed(self, needed=False)
        machines = Machines(address, gathering.address, agents, env_there, self.grace)
        try:
            yield machines
        finally:
            machines.close(status())

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
        status = 1
        with self.opened(nodes, lambda: status) as launcher:
            status = launcher.launch(command, ranks, logs, env, nodes=nodes, files=files)
        return status


def _first(names: Sequence[str]) -> str | None:
    """The first of these variables that is set."""
    return next((os.environ[name] for name in names if os.environ.get(name)), None)
