"""Which launcher starts a run, and what is refused before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from easyllm import preflight
from easyllm.errors import UserError
from easyllm.launchers import reports
from easyllm.launchers.auto import Auto
from easyllm.launchers.local import Local
from easyllm.launchers.multi_node import own_address
from easyllm.launchers.rendezvous import COUNT, JOB, MASTER, PORT, RANK, Rendezvous
from easyllm.launchers.reports import Report
from easyllm.launchers.slurm import Slurm
from easyllm.launchers.ssh import Ssh
from easyllm.spec.problems import Problem
from tests.support import merged, run_spec

CLUSTER = (*RANK, *COUNT, *MASTER, *PORT, *JOB, "SLURM_STEP_NODELIST", "SLURM_JOB_NUM_NODES")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CLUSTER:
        monkeypatch.delenv(name, raising=False)


def problems(folder: Path, launcher: dict[str, Any], nodes: int = 2, **over: Any) -> list[Problem]:
    config = {
        "stages": ["train"],
        "hardware": {"nodes": nodes, "devices_per_node": 4, "launcher": launcher},
        "training": {"steps": 1},
    }
    (folder / "talk.txt").write_text("text")
    found = preflight.problems(run_spec(folder, merged(config, over)))
    return [p for p in found if p.key.startswith("hardware")]


def target(cls: type) -> dict[str, Any]:
    return {"_target_": f"{cls.__module__}.{cls.__qualname__}"}


@pytest.mark.parametrize(
    ("nodes", "variables", "chosen"),
    [
        (1, {"SLURM_JOB_ID": "7", "NODE_RANK": "1", "MASTER_ADDR": "a"}, Local),
        (2, {"NODE_RANK": "1", "MASTER_ADDR": "a"}, Rendezvous),
        (2, {"PET_NODE_RANK": "0", "PET_MASTER_ADDR": "a"}, Rendezvous),
        (2, {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "1"}, Rendezvous),
        (2, {"SLURM_JOB_ID": "7", "SLURM_NODEID": "0"}, Slurm),
        (2, {}, None),
    ],
)
def test_the_launcher_fits_the_cluster(monkeypatch, nodes, variables, chosen) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = Auto(grace=9, env={"A": "b"}).chosen(nodes)
    assert type(found) is (chosen or type(None))
    if found is not None:
        assert (found.grace, found.env) == (9, {"A": "b"})


def test_machines_that_nothing_tells_of_are_refused(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, target(Auto))
    assert (problem.key, problem.value) == ("hardware.nodes", 2)
    assert "hardware.launcher._target_" in problem.remedy
    assert not problems(tmp_path, target(Auto), nodes=1)
    assert not problems(tmp_path, target(Auto), stages=["tokenize"])


def test_a_hostfile_is_deepspeeds(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# ours\nnode-1 slots=8\n\nadmin@node-2 slots=4  # the older\nnode-3\n")
    ssh = Ssh(hostfile=str(file))
    assert ssh.machines() == {"node-1": 8, "admin@node-2": 4, "node-3": None}
    assert ssh.names(2) == ["node-1", "admin@node-2"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("node-1 slots=eight\n", "line 1 is 'node-1 slots=eight', not 'host slots=N'"),
        ("node-1 8\n", "line 1 is 'node-1 8'"),
        ("a slots=1\na slots=1\n", "line 2 names a again"),
        ("# none\n", "names no machine"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_bad_hostfile_is_told(tmp_path: Path, text: str | None, told: str) -> None:
    file = tmp_path / "hosts"
    if text is not None:
        file.write_text(text)
    (problem,) = problems(tmp_path, {**target(Ssh), "hostfile": str(file)})
    assert problem.key == "hardware.launcher.hostfile"
    assert told in problem.message


def test_a_hostfile_that_is_too_small_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("me@127.0.0.1 slots=4\nb slots=2\n")
    launcher = {**target(Ssh), "hostfile": str(file), "ssh": ["sh"]}
    few, short = problems(tmp_path, launcher, nodes=3)
    assert (few.key, few.remedy) == ("hardware.nodes", "give hardware.nodes=2, or name more")
    assert short.key == "hardware.devices_per_node"
    assert "gives b 2 slots" in short.message


def test_an_ssh_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (problem,) = problems(
        tmp_path, {**target(Ssh), "hosts": ["localhost", "b"], "ssh": ["no-such-ssh"]}
    )
    assert "no-such-ssh is not installed here" in problem.message


def test_a_first_host_that_is_another_machine_is_refused(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, {**target(Ssh), "hosts": ["192.0.2.1", "b"], "ssh": ["sh"]})
    assert (problem.key, problem.value) == ("hardware.launcher.hosts", "192.0.2.1")
    assert "Start it there" in problem.message


def test_slurm_without_its_job_is_refused(tmp_path: Path, monkeypatch) -> None:
    (problem,) = problems(tmp_path, {**target(Slurm), "srun": ["sh"]})
    assert "sbatch --nodes=2" in problem.remedy
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    found = problems(tmp_path, {**target(Slurm), "srun": ["sh"]})
    assert "the Slurm job has 1 nodes" in found[0].message


def test_a_rendezvous_without_its_place_is_refused(tmp_path: Path, monkeypatch) -> None:
    number, address = problems(tmp_path, target(Rendezvous))
    assert number.key == "hardware.launcher.node_rank"
    assert address.key == "hardware.launcher.address"
    monkeypatch.setenv("NNODES", "4")
    given = {**target(Rendezvous), "node_rank": 2, "address": "a"}
    rank, count = problems(tmp_path, given)
    assert (rank.key, count.key) == ("hardware.launcher.node_rank", "hardware.nodes")
    assert count.remedy == "give hardware.nodes=4"


def test_a_machine_that_only_serves_needs_no_sources(tmp_path: Path) -> None:
    config = {
        "stages": ["tokenize", "train"],
        "data": {
            "sources": {"text": {"_target_": "easyllm.data.sources.readers.Text", "path": "gone"}}
        },
    }
    for rank, found in ((0, ["data.sources.text.path"]), (1, [])):
        launcher = {**target(Rendezvous), "node_rank": rank, "address": "a"}
        over = {"hardware": {"nodes": 2, "launcher": launcher}, "training": {"steps": 1}}
        run = run_spec(tmp_path, merged(config, over))
        assert [p.key for p in preflight.problems(run)] == found


def test_the_first_machine_owns_the_run() -> None:
    with pytest.raises(UserError, match=r"192\.0\.2\.1, the first machine of the run, is not this"):
        own_address("192.0.2.1")
    assert own_address("127.0.0.1") == "127.0.0.1"


def test_causes_come_before_consequences(tmp_path: Path) -> None:
    """Rank 0 lost its connection and was first to say so; rank 2 was why."""
    lost = "RuntimeError: [gloo/pair.cc:525] Connection closed by peer [10.0.0.2]:1234"
    reports.leave(tmp_path, Report(0, lost, reports.kind_of(lost)))
    reports.leave(tmp_path, Report(2, "ValueError: bad", reports.kind_of("ValueError: bad")))
    for rank in (0, 1, 2):
        (tmp_path / f"rank-{rank}.log").touch()
    assert reports.cause(tmp_path, 1) == ("rank 2: ValueError: bad", False)
