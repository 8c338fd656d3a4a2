"""The spine on CUDA devices, held against the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
STEPS = 5
TRAINED = "stages=[tokenize,shuffle,repartition,train]"
ONE = ["parallelism=zero", "~parallelism.pipeline_stages", "hardware=h100"]
PIPE = ["hardware=h100x8", "hardware.devices_per_node=2"]
ONE_CARD = {"PYTHONPATH": str(Path(__file__).parent / "one_card"), "CUDA_VISIBLE_DEVICES": "0,1"}
"""With it two ranks share the first device."""
WORDS = {
    "cuda": ONE,
    "bf16": [*ONE, "model.dtype=bfloat16"],
    **{
        f"offload-{stage}": [*ONE, f"parallelism.zero_stage={stage}",
                             f"parallelism.offload={what}", "training.optimizer.fused=true"]
        for stage, what in ((2, "optimizer"), (3, "parameters"))
    },
    "compiled": [*ONE, "model.compile=true"],
    "flex": [*ONE, "model.attention=flex_attention"],
    "varlen": [*ONE, "model.dtype=bfloat16", "model.attention=varlen"],
    "varlen-compiled": [*ONE, "model.dtype=bfloat16", "model.attention=varlen",
                        "model.compile=true"],
    "long": [*ONE, "model.dtype=bfloat16", "model.attention=varlen", "model.compile=true",
             "training.steps=60", "training.checkpoint.every=10"],
    "pipe": PIPE,
    "pipe-varlen": [*PIPE, "model.dtype=bfloat16", "model.attention=varlen", "model.compile=true"],
}  # fmt: skip
"""What is run on devices; ``tests/cli/test_gpu_commands.py`` holds that it is sound."""


def command(run_dir: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "easyllm", "+recipe=demo", f"training.steps={STEPS}",
            f"run_dir={run_dir}", *words]  # fmt: skip


def run(folder: Path, words: list[str], **environment: str) -> None:
    paths = [environment.get("PYTHONPATH"), os.environ.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def logged(folder: Path, run_dir: str) -> list[float]:
    file = folder / run_dir / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line)["loss"] for line in lines if line.endswith("\n")]


def losses(folder: Path, run_dir: str, *words: str, **environment: str) -> list[float]:
    run(folder, command(run_dir, TRAINED, *words), **environment)
    return logged(folder, run_dir)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu")


@pytest.fixture(scope="module")
def on_cpu(folder: Path) -> list[float]:
    run(folder, command("cpu"))
    return logged(folder, "cpu")


def check(folder: Path, on_cpu: list[float], name: str, within: float = 1e-3) -> None:
    assert losses(folder, name, *WORDS[name]) == pytest.approx(on_cpu, rel=within)


@pytest.mark.gpu(devices=1)
def test_one_device_trains_as_the_cpu_does(folder, on_cpu):
    check(folder, on_cpu, "cuda")


@pytest.mark.gpu(devices=1)
def test_compiled_layers_train_as_the_cpu_does(folder, on_cpu):
    check(folder, on_cpu, "compiled")


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


@pytest.mark.gpu(devices=1)
@pytest.mark.parametrize("name", ["varlen", "varlen-compiled"])
def test_varlen_attention_trains_as_the_cpu_does(folder, on_cpu, name):
    check(folder, on_cpu, name, 2e-2)


@pytest.mark.gpu(devices=1)
@pytest.mark.parametrize(
    ("name", "like", "within"),
    [("pipe", "cuda", 1e-3), ("pipe-varlen", "varlen-compiled", 2e-3)],
)
def test_two_ranks_on_one_device_train_as_one_does(folder, name, like, within):
    found = losses(folder, f"{name}-shared", *WORDS[name], **ONE_CARD)
    assert found == pytest.approx(losses(folder, f"{name}-alone", *WORDS[like]), rel=within)


@pytest.mark.gpu(devices=1)
def test_a_killed_run_goes_on_to_the_same_bits(folder):
    undisturbed = losses(folder, "undisturbed", *WORDS["long"])
    words = command("killed", TRAINED, *WORDS["long"])
    started = subprocess.Popen(words, cwd=folder, start_new_session=True)
    while len(logged(folder, "killed")) < 15:
        assert started.poll() is None
        time.sleep(0.01)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    assert len(logged(folder, "killed")) < 60
    run(folder, words)
    assert logged(folder, "killed") == undisturbed


@pytest.mark.gpu(devices=1)
def test_answers_are_those_of_the_cpu(folder, on_cpu):
    words = ["stages=[infer]", f"inference.model={folder / 'cpu/export'}",
             "inference.prompts.one='The statement'", "inference.prompts.two='A class'",
             "inference.sampling.max_tokens=24"]  # fmt: skip
    for device in ("cpu", "h100"):
        run(folder, [sys.executable, "-m", "easyllm", *words, f"hardware={device}",
                     f"run_dir=answers-{device}"])  # fmt: skip
    cpu, cuda = (
        [json.loads(line) for line in
         (folder / f"answers-{device}/inference/results.jsonl").read_text().splitlines()]
        for device in ("cpu", "h100")
    )  # fmt: skip
    assert [line["text"] for line in cuda] == [line["text"] for line in cpu]
    assert all(line["text"] for line in cuda)


@pytest.mark.gpu(devices=2)
def test_two_devices_in_a_pipeline_train_as_the_cpu_does(folder, on_cpu):
    check(folder, on_cpu, "pipe")
