"""The spine on CUDA devices, held against the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
STEPS = 5
ONE = ["parallelism=zero", "~parallelism.pipeline_stages", "hardware=h100"]
WORDS = {
    "cuda": ONE,
    "bf16": [*ONE, "model.dtype=bfloat16"],
    **{
        f"offload-{stage}": [*ONE, f"parallelism.zero_stage={stage}",
                             f"parallelism.offload={what}", "training.optimizer.fused=true"]
        for stage, what in ((2, "optimizer"), (3, "parameters"))
    },
    "flex": [*ONE, "model.attention=flex_attention"],
    "pipe": ["hardware=h100x8", "hardware.devices_per_node=2"],
}  # fmt: skip
"""What is run on devices; ``tests/cli/test_gpu_commands.py`` holds that it is sound."""


def losses(folder: Path, run_dir: str, *words: str) -> list[float]:
    command = [sys.executable, "-m", "easyllm", "+recipe=demo", f"training.steps={STEPS}",
               f"run_dir={run_dir}", *words]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    lines = (folder / run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu")


@pytest.fixture(scope="module")
def on_cpu(folder: Path) -> list[float]:
    return losses(folder, "cpu")


def check(folder: Path, on_cpu: list[float], name: str, within: float = 1e-3) -> None:
    assert losses(folder, name, *WORDS[name]) == pytest.approx(on_cpu, rel=within)


@pytest.mark.gpu(devices=1)
def test_one_device_trains_as_the_cpu_does(folder, on_cpu):
    check(folder, on_cpu, "cuda")


@pytest.mark.gpu(devices=1)
def test_bfloat16_stays_near(folder, on_cpu):
    check(folder, on_cpu, "bf16", 2e-2)


@pytest.mark.gpu(devices=1)
@pytest.mark.parametrize("stage", [2, 3])
def test_states_in_the_machines_memory_change_no_loss(folder, on_cpu, stage):
    check(folder, on_cpu, f"offload-{stage}")


@pytest.mark.gpu(devices=1)
def test_flex_attention_trains_as_the_cpu_does(folder, on_cpu):
    check(folder, on_cpu, "flex")


@pytest.mark.gpu(devices=2)
def test_two_devices_in_a_pipeline_train_as_the_cpu_does(folder, on_cpu):
    check(folder, on_cpu, "pipe")
