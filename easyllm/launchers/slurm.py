"""Ranks on the nodes of a Slurm job, started by srun from its batch script."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from easyllm.errors import UserError
from easyllm.launchers.multi_node import AgentLauncher, AgentRendezvous
from easyllm.launchers.remote.agent import TOKEN
from easyllm.launchers.remote.environment import named, passed
from easyllm.spec.problems import Problem
from easyllm.spec.run import RunSpec

KEPT = ("SLURM_*", "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_*", "TMPDIR",
        "LD_LIBRARY_PATH")  # fmt: skip
"""Variables of this environment that srun needs and that every login has."""


@dataclass(frozen=True, kw_only=True)
class Slurm(AgentLauncher):
    """Starts ranks on this node and, by srun, on the others of its Slurm job.

    For a batch script (``sbatch``), which runs on the job's first node and gives the command once.
    Where srun itself starts the command on every node, use
    ``easyllm.launchers.rendezvous.Rendezvous``.
    """

    srun: tuple[str, ...] = ("srun", "--overlap")
    """The srun command and its options, e.g. ``[srun, --overlap, --gres=gpu:8]``."""
    python: str | None = None
    """The Python interpreter on the other nodes; null takes the same path as on this one."""

    def missing(self, key: str, run: RunSpec) -> Iterator[Problem]:
        given = os.environ.get("SLURM_JOB_NUM_NODES", "")
        if "SLURM_JOB_ID" not in os.environ or not given.isdecimal():
            yield Problem(
                f"{key}._target_", type(self).__name__, "this is not a Slurm job: SLURM_JOB_ID "
                "and SLURM_JOB_NUM_NODES are not set",
                f"start the run from a batch script: sbatch --nodes={run.hardware.nodes} …",
            )  # fmt: skip
            return
        if int(given) < run.hardware.nodes:
            yield Problem(
                "hardware.nodes", run.hardware.nodes, f"the Slurm job has {given} nodes",
                f"give hardware.nodes={given}, or sbatch --nodes={run.hardware.nodes}",
            )  # fmt: skip
        for program in (self.srun[0] if self.srun else "srun", "scontrol"):
            if shutil.which(program) is None:
                yield Problem(
                    f"{key}.srun", list(self.srun), f"{program} is not installed here",
                    "give the srun of this cluster",
                )  # fmt: skip
                return
        try:
            self.names(run.hardware.nodes)
        except UserError as error:
            yield Problem(key, type(self).__name__, str(error), "start the run there")

    def names(self, nodes: int) -> list[str]:
        found = hostnames(os.environ.get("SLURM_JOB_NODELIST", ""))[:nodes]
        here = os.environ.get("SLURMD_NODENAME", socket.gethostname())
        if found[0] != here:
            raise UserError(
                f"the first node of the Slurm job, {found[0]}, must own the run, but this is {here}"
            )
        return found

    def address(self, name: str) -> str:
        return node_address(name)

    def start(
        self, names: Sequence[str], gathering: AgentRendezvous, env: Mapping[str, str], logs: Path
    ) -> list[subprocess.Popen[bytes]]:
        count = str(len(names))
        command = [
            *self.srun, f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1",
            f"--nodelist={','.join(names)}", "--export=ALL", "--input=none", "--kill-on-bad-exit=0",
            self.python or sys.executable, "-m", "easyllm.launchers.remote.agent",
            gathering.address, str(gathering.port),
        ]  # fmt: skip
        # srun exports this environment, which is a part of the launcher's
        own = {**named(KEPT), **passed(self, needed=True), **env, TOKEN: gathering.token}
        with (logs / "node-1.log").open("wb") as file:
            return [
                subprocess.Popen(
                    command, env=own, stdin=subprocess.DEVNULL, stdout=file,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )
            ]  # fmt: skip


def hostnames(nodelist: str) -> list[str]:
    """The nodes in a list such as ``gpu[01-04,7]``."""
    done = subprocess.run(
        ["scontrol", "show", "hostnames", nodelist], capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(f"scontrol does not know the nodes {nodelist}: {done.stderr.strip()}")
    return done.stdout.split()


def node_address(name: str) -> str:
    """The address by which Slurm reaches a node; DNS may not have it."""
    done = subprocess.run(["scontrol", "show", "node", name], capture_output=True, text=True)
    words = [word.partition("=") for word in done.stdout.split()]
    return next((value for key, _, value in words if key == "NodeAddr"), name)
