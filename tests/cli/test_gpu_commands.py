"""The commands that need a GPU are sound: a machine without one can tell."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.test_cuda import WORDS

BENCHMARK = Path(__file__).parents[2] / "benchmarks/train_gpu.py"


def benchmark() -> Any:
    found = spec_from_file_location("train_gpu", BENCHMARK)
    assert found and found.loader
    module = module_from_spec(found)
    found.loader.exec_module(module)
    return module


def sound(folder: Path, words: list[str]) -> None:
    command = [sys.executable, "-m", "easyllm", *words, "stages=[]"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the spec is valid" in done.stdout


@pytest.mark.parametrize("name", WORDS)
def test_the_gpu_tests_run_what_easyllm_takes(name: str, tmp_path: Path) -> None:
    sound(tmp_path, ["+recipe=demo", *WORDS[name]])


@pytest.mark.parametrize("size", ["0.4b", "1.3b", "3b"])
def test_the_gpu_benchmark_runs_what_easyllm_takes(size: str, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").touch()
    asked = Namespace(device="cuda", attention="sdpa", seq_len=2048, recompute=False)
    words = benchmark().words(asked, size, tmp_path / "text.jsonl", tmp_path / "run")
    sound(tmp_path, [word for word in words if not word.startswith("stages=")])
