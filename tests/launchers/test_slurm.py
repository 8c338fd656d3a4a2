"""Training as a job of a real Slurm, whose two nodes are the two machines."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launchers.machines import ROOT, Machines
from tests.launchers.test_two_machines import (
    DEMO,
    KEPT_HERE,
    WITNESSED,
    check_environment,
    losses,
    steps,
    witness,
)
from tests.support import PATIENCE, wait_for

pytestmark = pytest.mark.slow

SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin"

CONFIGURATION = """
ClusterName=two
SlurmctldHost=first({addresses[0]})
AuthInfo=socket={folder}/munge.sock
MpiDefault=none
ProctrackType=proctrack/linuxproc
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SwitchType=switch/none
TaskPlugin=task/none
ReturnToService=2
NodeName=first NodeAddr={addresses[0]} CPUs=2 State=UNKNOWN
NodeName=second NodeAddr={addresses[1]} CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
"""


class Slurm:
    """A controller and two nodes."""

    def __init__(self, machines: Machines, folder: Path):
        self.machines, self.folder = machines, folder
        self.daemons: list[subprocess.Popen[bytes]] = []

    def up(self) -> None:
        folder = self.folder
        file = folder / "slurm.conf"
        file.write_text(CONFIGURATION.format(folder=folder, addresses=self.machines.addresses))
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\nIgnoreSystemd=yes\n")
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        self._daemon(
            "munged", "-F", "--force", f"--socket={folder}/munge.sock", f"--key-file={key}",
            f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log",
            f"--seed-file={folder}/munge.seed",
        )  # fmt: skip
        wait_for((folder / "munge.sock").exists)
        self._daemon(*self.on("first", "slurmctld", "-D"))
        for name in ("first", "second"):
            self._daemon(*self.on(name, "slurmd", "-D", "-N", name))
        deadline = time.monotonic() + 30
        while self.call("sinfo", "-h", "-o", "%T").split() != ["idle"]:
            if time.monotonic() > deadline:
                log = folder / "slurmd-first.log"
                said = log.read_text().splitlines()[-1:] if log.exists() else []
                pytest.skip(f"Slurm does not come up here: {said}")
            time.sleep(0.5)

    def on(self, name: str, *words: str) -> list[str]:
        """A command on a machine that has a host name of its own."""
        space = self.machines.first if name == "first" else self.machines.second
        # not by ip, which would hide the control groups that slurmd asks for
        return ["nsenter", f"--net=/run/netns/{space}", "unshare", "-u", "sh", "-c",
                'hostname "$0" && exec "$@"', name, *words]  # fmt: skip

    def call(self, *words: str) -> str:
        done = subprocess.run(
            self.on("first", *words), env=self.env, capture_output=True, text=True, timeout=PATIENCE
        )
        return done.stdout

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "PATH": SBIN, "SLURM_CONF": str(self.folder / "slurm.conf"),
                "PYTHONPATH": str(ROOT)}  # fmt: skip

    def _daemon(self, *command: str) -> None:
        null = subprocess.DEVNULL
        self.daemons.append(
            subprocess.Popen(command, env=self.env, stdin=null, stdout=null, stderr=null)
        )

    def down(self) -> None:
        for daemon in reversed(self.daemons):
            daemon.terminate()
            daemon.wait(timeout=PATIENCE)


@pytest.fixture(scope="module")
def slurm(cable: Machines, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    daemons = ("slurmctld", "slurmd", "munged")
    if absent := [name for name in daemons if not shutil.which(name, path=SBIN)]:
        pytest.skip(f"a Slurm needs {', '.join(absent)}")
    made = Slurm(cable, tmp_path_factory.mktemp("slurm"))
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.mark.parametrize("srun", ["", "srun --nodes=2 --ntasks-per-node=1 "], ids=["batch", "srun"])
def test_a_job_trains_on_both_nodes(slurm: Slurm, tmp_path: Path, srun: str) -> None:
    """From the batch script, which reaches the other node by srun, or on both by srun."""
    script = tmp_path / "job.sh"
    given = (*DEMO, *witness(tmp_path), "training.steps=4", "run_dir=run")
    words = " ".join(f"'{word}'" for word in given)
    environment = {**WITNESSED, **KEPT_HERE, "PASSED": "passed"}
    exports = "".join(f"export {name}='{value}'\n" for name, value in environment.items())
    command = f"exec {srun}{sys.executable} -m easyllm {words}\n"
    script.write_text(f"#!/bin/sh\n{exports}cd {tmp_path}\n{command}")
    slurm.call("sbatch", "--nodes=2", f"--output={tmp_path}/out", str(script))
    # the queue forgets a job when it has ended
    wait_for(lambda: (tmp_path / "out").exists() and not slurm.call("squeue", "-h"))
    said = (tmp_path / "out").read_text()
    assert steps(tmp_path / "run") == 4, said
    assert [step for step, _ in losses(tmp_path / "run")] == [1, 2, 3, 4]
    assert "train: done" in said
    if not srun:  # which gives all of the environment to all
        check_environment(tmp_path)
