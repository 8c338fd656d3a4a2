"""Weights that cannot be trained from: refused with the tensor, before anything is trained."""

from __future__ import annotations

import json
import subprocess
import sys
import time
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
        f"model.path={folder}", "model.dtype=float32", "data=python_docs", "data.limit=30",
        "data.tokenizer._target_=easyllm.data.tokenizers.ByteLevelBPE",
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


@pytest.mark.parametrize("harm", [cut, remove, point_elsewhere])
def test_files_are_looked_at_before_anything_starts(
    model: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[Path], str]
) -> None:
    said = harm(model)
    begin = time.monotonic()
    assert main(command(model)) == 2
    assert time.monotonic() - begin < 5
    message = " ".join(capsys.readouterr().err.split())
    assert "model.path" in message and said in message
    assert "it should hold model.layers." in message
    assert not (model.parent / "run").exists() and not (model.parent / "runs").exists()


def test_tensors_are_looked_at_before_the_first_is_read(model: Path) -> None:
    """Every stage looks at its own; all that is wrong is told at once."""
    file = shard(model)
    tensors = load_file(file)
    save_file(tensors | {NORM: torch.ones(31)}, file, metadata={"format": "pt"})
    index = json.loads((model / INDEX).read_text("utf-8"))
    gone = "model.layers.0.mlp.up_proj.weight"
    index["weight_map"]["model.layers.7.spare.weight"] = index["weight_map"].pop(gone)
    (model / INDEX).write_text(json.dumps(index), "utf-8")
    words = [sys.executable, "-m", "easyllm", *command(model)]
    done = subprocess.run(words, cwd=model.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    said = " ".join(done.stderr.split())
    assert f"{NORM} has shape (31,), the configuration asks for (32,)" in said
    assert f"no tensor {gone} of shape (64, 32)" in said
    assert "model.layers.7.spare.weight" in said
    assert "Traceback" not in said
