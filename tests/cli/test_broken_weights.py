"""Weights that cannot be trained from: refused with the tensor, before anything is trained."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from easyllm.__main__ import main
from easyllm.models.tensor_files import INDEX
from tests.support import LLAMA

NORM = "model.layers.1.post_attention_layernorm.weight"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    LlamaForCausalLM(LlamaConfig(**LLAMA)).save_pretrained(folder, max_shard_size="80KB")
    return folder


def shard(folder: Path) -> Path:
    named = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"]
    return folder / str(named[NORM])


def command(folder: Path) -> list[str]:
    return [
        f"model.path={folder}", "model.dtype=float32", "data=python_docs", "data.max_documents=30",
        "data.tokenizer._target_=easyllm.data.tokenizers.components.ByteLevelBPE",
        "data.tokenizer.vocab_size=512", "data.seq_len=64", "data.workers=1",
        "parallelism=pipeline", "hardware.devices_per_node=2",
        "parallelism.global_batch_size=2", "training.steps=1",
        "stages=[tokenize,train]", "run_dir=run", "~model.config", "model.family=null",
        "model.init=pretrained",
    ]  # fmt: skip


def cut(folder: Path) -> str:
    file = shard(folder)
    file.write_bytes(file.read_bytes()[:-100])
    return "its download did not end"


def remove(folder: Path) -> str:
    shard(folder).unlink()
    return "is not there"


def point_elsewhere(folder: Path) -> str:
    text = (folder / INDEX).read_text("utf-8")
    (folder / INDEX).write_text(text.replace(shard(folder).name, "absent.safetensors"), "utf-8")
    return "absent.safetensors is not there"


def misshape(folder: Path) -> list[str]:
    """One tensor of another shape, one absent, one spare; returns what should be said."""
    file = shard(folder)
    tensors = load_file(file)
    save_file(tensors | {NORM: torch.ones(31)}, file, metadata={"format": "pt"})
    index = json.loads((folder / INDEX).read_text("utf-8"))
    gone = "model.layers.0.mlp.up_proj.weight"
    index["weight_map"]["model.layers.7.spare.weight"] = index["weight_map"].pop(gone)
    (folder / INDEX).write_text(json.dumps(index), "utf-8")
    return [
        f"{NORM} has shape (31,), the configuration asks for (32,)",
        f"no tensor {gone} of shape (64, 32)",
        "model.layers.7.spare.weight",
    ]


def asking(folder: Path) -> list[str]:
    return [
        "stages=[infer]", f"inference.model={folder}", "inference.prompts={a: hi}",
        "model.dtype=float32", "run_dir=run",
    ]  # fmt: skip


@pytest.mark.parametrize("harm", [cut, remove, point_elsewhere])
def test_files_are_looked_at_before_anything_starts(
    model: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[Path], str]
) -> None:
    said = harm(model)
    assert main(command(model)) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "model.path" in message and said in message
    assert "it should hold model.layers." in message
    assert not (model.parent / "run").exists() and not (model.parent / "runs").exists()


@pytest.mark.parametrize("harm", [cut, remove, point_elsewhere])
def test_files_to_generate_from_are_looked_at_too(
    model: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[Path], str]
) -> None:
    said = harm(model)
    assert main(asking(model)) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "inference.model" in message and said in message
    assert "it should hold model.layers." in message
    assert not (model.parent / "run").exists()


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_tensors_to_generate_from_are_looked_at_too(model: Path, engine: str) -> None:
    """No engine says which: one goes on with what it draws instead, one's process ends."""
    if engine == "vllm":
        pytest.importorskip("vllm")
    said = misshape(model)
    words = [sys.executable, "-m", "easyllm", *asking(model), f"+engine={engine}"]
    done = subprocess.run(words, cwd=model.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    told = " ".join(done.stderr.split())
    assert all(part in told for part in said) and "Traceback" not in told


def test_tensors_are_looked_at_before_the_first_is_read(model: Path) -> None:
    """Every stage looks at its own; all that is wrong is told at once."""
    said_of = misshape(model)
    words = [sys.executable, "-m", "easyllm", *command(model)]
    done = subprocess.run(words, cwd=model.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    said = " ".join(done.stderr.split())
    assert all(part in said for part in said_of)
    assert "Traceback" not in said
