"""The spine on CUDA devices, held against the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
STEPS = 5


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


@pytest.mark.gpu(devices=1)
def test_one_device_trains_as_the_cpu_does(folder, on_cpu):
    words = ["parallelism=zero", "hardware=h100"]
    assert losses(folder, "cuda", *words) == pytest.approx(on_cpu, rel=1e-3)


@pytest.mark.gpu(devices=1)
def test_bfloat16_stays_near(folder, on_cpu):
    words = ["parallelism=zero", "hardware=h100", "model.dtype=bfloat16"]
    assert losses(folder, "bf16", *words) == pytest.approx(on_cpu, rel=2e-2)


@pytest.mark.gpu(devices=1)
@pytest.mark.parametrize("layout", ["zero_stage=2", "zero_stage=3"])
def test_states_in_the_machines_memory_change_no_loss(folder, on_cpu, layout):
    words = ["parallelism=zero", "hardware=h100", f"parallelism.{layout}",
             f"parallelism.offload={'parameters' if '3' in layout else 'optimizer'}",
             "training.optimizer.fused=true"]  # fmt: skip
    assert losses(folder, f"offload-{layout[-1]}", *words) == pytest.approx(on_cpu, rel=1e-3)


@pytest.mark.gpu(devices=1)
def test_flex_attention_trains_as_the_cpu_does(folder, on_cpu):
    words = ["parallelism=zero", "hardware=h100", "model.attention=flex_attention"]
    assert losses(folder, "flex", *words) == pytest.approx(on_cpu, rel=1e-3)


@pytest.mark.gpu(devices=2)
def test_two_devices_in_a_pipeline_train_as_the_cpu_does(folder, on_cpu):
    words = ["hardware=h100x8", "hardware.devices_per_node=2"]
    assert losses(folder, "pipe", *words) == pytest.approx(on_cpu, rel=1e-3)
