"""Training on two machines: started, killed and continued, through the real launchers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.launchers.machines import ROOT, Machines
from tests.support import PATIENCE, wait_for

pytestmark = pytest.mark.slow

DEMO = ("+recipe=demo", "stages=[tokenize,train]", "data.max_documents=20", "data.seq_len=64",
        "data.tokenizer.vocab_size=300", "model.overrides.vocab_size=304",
        "model.overrides.num_hidden_layers=2", "parallelism.global_batch_size=4",
        "parallelism.micro_batch_size=1", "hardware.nodes=2", "hardware.devices_per_node=1",
        "training.checkpoint.every=2")  # fmt: skip


def easyllm(
    machines: Machines, folder: Path, *words: str, on: str = "", **env: str
) -> subprocess.Popen[str]:
    """The command on a machine, by default the first."""
    command = machines.on(on or machines.first, sys.executable, "-m", "easyllm", *words)
    own = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env}
    return subprocess.Popen(
        command, cwd=folder, env=own, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def by_ssh(machines: Machines) -> list[str]:
    return [
        "hardware.launcher._target_=easyllm.launchers.ssh.Ssh",
        f"hardware.launcher.hosts=[{','.join(machines.addresses)}]",
        f"hardware.launcher.ssh=[ssh,-F,{machines.folder}/ssh_config]",
    ]


def ended(process: subprocess.Popen[str], status: int, seconds: float = 240) -> str:
    _, said = process.communicate(timeout=seconds)
    assert process.returncode == status, said
    return said


def losses(run: Path) -> list[tuple[int, float]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [(line["step"], line["loss"]) for line in map(json.loads, lines)]


def steps(run: Path) -> int:
    return len(losses(run)) if (run / "metrics.jsonl").exists() else 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, float]]:
    """The losses of the same layout on one machine."""
    folder = tmp_path_factory.mktemp("undisturbed")
    words = [w for w in DEMO if not w.startswith("hardware.")]
    command = [sys.executable, "-m", "easyllm", *words, "training.steps=30", "run_dir=run"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return losses(folder / "run")


def test_a_machine_loses_its_power_and_the_same_command_goes_on(
    machines: Machines,
    undisturbed: Sequence[tuple[int, float]],
    tmp_path: Path,
) -> None:
    words = [*DEMO, *by_ssh(machines), "training.steps=30", "run_dir=run"]
    process = easyllm(machines, tmp_path, *words)
    wait_for(lambda: steps(tmp_path / "run") >= 5)
    machines.cut()
    said = ended(process, 1)
    failure = next(line for line in said.splitlines() if "train failed" in line)
    assert f"rank 1 on {machines.addresses[1]} is out of reach" in failure
    assert "Traceback" not in said
    assert not machines.processes(machines.first)
    assert steps(tmp_path / "run") < 30

    machines.boot()
    said = ended(easyllm(machines, tmp_path, *words), 0)
    assert "tokenize: up to date" in said
    assert losses(tmp_path / "run") == list(undisturbed)
    logs = tmp_path / "run" / "logs" / "train"
    assert {log.name for log in logs.iterdir()} == {"node-1.log", "rank-0.log", "rank-1.log"}


@pytest.mark.skipif(not shutil.which("pdsh"), reason="pdsh is not installed")
def test_a_rank_killed_there_is_named_here(machines: Machines, tmp_path: Path) -> None:
    words = [*DEMO, *by_ssh(machines), "hardware.launcher.by=pdsh", "training.steps=1000"]
    process = easyllm(machines, tmp_path, *words, "run_dir=run")
    wait_for(lambda: steps(tmp_path / "run") >= 3)
    workers = [pid for pid in machines.processes(machines.second) if is_worker(pid)]
    os.kill(workers[0], signal.SIGKILL)
    said = ended(process, 1)
    assert f"rank 1 on {machines.addresses[1]} was killed by SIGKILL" in said
    assert "Traceback" not in said, "rank 0 lost its peer, which is not the cause"
    wait_for(lambda: not any(map(is_worker, machines.processes(machines.second))))


def is_worker(pid: int) -> bool:
    try:
        return b"easyllm.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_the_owner_is_killed_and_takes_the_other_along(
    machines: Machines,
    tmp_path: Path,
) -> None:
    words = [*DEMO, *by_ssh(machines), "training.steps=1000", "run_dir=run"]
    process = easyllm(machines, tmp_path, *words)
    wait_for(lambda: steps(tmp_path / "run") >= 3)
    process.kill()
    process.communicate(timeout=PATIENCE)
    wait_for(lambda: not any(map(is_worker, machines.processes(machines.second))))


def test_a_run_dir_of_one_machine_only_is_refused(cable: Machines, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    cable.boot(own=run)
    try:
        words = [*DEMO, *by_ssh(cable), "training.steps=4", "run_dir=run", "data.dir=store"]
        said = ended(easyllm(cable, tmp_path, *words), 1)
        told = " ".join(said.split())
        assert f"is not there on {cable.addresses[1]}" in told
        assert "Give a run_dir on a disk that all machines share" in told
        assert "Traceback" not in said
        assert not (run / "checkpoints").exists()
        assert not list(run.glob(".seen*"))
    finally:
        cable.cut()


def test_a_store_of_one_machine_only_is_refused(cable: Machines, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    cable.boot(own=tmp_path / "store")
    try:
        words = [*DEMO, *by_ssh(cable), "training.steps=4", "run_dir=run", "data.dir=store"]
        said = ended(easyllm(cable, tmp_path, *words), 1)
        told = " ".join(said.split())
        assert f"{cable.addresses[1]}: {tmp_path}/store/tokens/manifest.json" in told
        assert "Give data.dir and model.path on a disk that all machines share" in told
    finally:
        cable.cut()


WITNESSED = {
    "NCCL_DEBUG": "WARN", "HF_HUB_OFFLINE": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "TORCH_SHOW_CPP_STACKTRACES": "0", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "OMP_NUM_THREADS": "1", "OMP_PROC_BIND": "false", "https_proxy": "http://10.0.0.9:3128",
    "NO_PROXY": "10.0.0.0/8",
}  # fmt: skip
"""What ranks that Slurm or ssh starts get by default."""
KEPT_HERE = {"CUDA_VISIBLE_DEVICES": "", "PRIVATE": "private", "AWS_SECRET_ACCESS_KEY": "secret"}
"""What they do not get."""


def witness(folder: Path) -> list[str]:
    """Words for training with a schedule that writes the environment of each rank into
    ``folder/seen-<rank>``: a tracker, which rank 0 opens, is no witness."""
    (folder / "mine").mkdir()
    (folder / "mine" / "witness.py").write_text(
        "import json, os\nfrom dataclasses import dataclass\nfrom pathlib import Path\n"
        "from easyllm.training.schedules import Constant\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Witness(Constant):\n"
        "    def factor(self, step, total):\n"
        f"        Path(r'{folder}', 'seen-' + os.environ['RANK']).write_text(\n"
        "            json.dumps(dict(os.environ)))\n"
        "        return super().factor(step, total)\n"
    )
    return ["--config-dir", "mine", "components.allow=[witness]",
            "training.schedule._target_=witness.Witness",
            "+hardware.launcher.env.GIVEN=given", "hardware.launcher.pass_env=[PASS*]"]  # fmt: skip


def check_environment(folder: Path) -> dict[str, str]:
    """What rank 1 saw, on the machine where nothing was typed."""
    there: dict[str, str] = json.loads((folder / "seen-1").read_text())
    expected = {**WITNESSED, "GIVEN": "given", "PASSED": "passed", "RANK": "1"}
    assert {name: there.get(name) for name in expected} == expected
    assert not [name for name in KEPT_HERE if there.get(name) == KEPT_HERE[name]]
    return there


def test_what_goes_there_of_the_environment(machines: Machines, tmp_path: Path) -> None:
    words = [*DEMO, *by_ssh(machines), *witness(tmp_path), "training.steps=2"]
    environment = {**WITNESSED, **KEPT_HERE, "PASSED": "passed"}
    ended(easyllm(machines, tmp_path, *words, **environment), 0)
    assert check_environment(tmp_path)["GLOO_SOCKET_IFNAME"] == machines.cables[1]


def test_a_machine_that_cannot_be_reached_is_named(machines: Machines, tmp_path: Path) -> None:
    words = [*DEMO, *by_ssh(machines), "training.steps=2"]
    (tmp_path / "no_key").write_text("BatchMode yes\nStrictHostKeyChecking no\n")
    words[-2] = f"hardware.launcher.ssh=[ssh,-F,{tmp_path}/no_key]"
    said = ended(easyllm(machines, tmp_path, *words), 1)
    assert f"starting ranks on {machines.addresses[1]}: ssh ended with status 255" in said
    assert "Traceback" not in said


def test_the_same_command_on_both_machines(
    machines: Machines,
    undisturbed: Sequence[tuple[int, float]],
    tmp_path: Path,
) -> None:
    """As a cluster starts it. SIGTERM on either saves, and both end with 75; again, it goes on."""
    words = [*DEMO, "training.steps=30", "run_dir=run"]
    owner, other = machines.addresses
    place = {"MASTER_ADDR": owner, "MASTER_PORT": "29411", "NNODES": "2"}

    def start() -> list[subprocess.Popen[str]]:
        return [
            easyllm(machines, tmp_path, *words, on=name, **place, NODE_RANK=str(rank))
            for rank, name in enumerate((machines.first, machines.second))
        ]

    first, second = start()
    wait_for(lambda: steps(tmp_path / "run") >= 3)
    second.send_signal(signal.SIGTERM)
    said = [ended(process, 75) for process in (first, second)]
    assert "stopped by a signal; saved at step" in said[0]
    assert 3 <= steps(tmp_path / "run") < 30
    for process in start():
        ended(process, 0)
    assert losses(tmp_path / "run") == list(undisturbed)
    assert other not in (tmp_path / "run" / "run.yaml").read_text()
