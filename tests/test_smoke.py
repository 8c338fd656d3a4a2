"""Every recipe, shrunk to this machine, goes all the way from text to text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import SHELL

ROOT = Path(__file__).parent.parent
IN_PAGES = ("baichuan2_13b", "llama13b_pipe")
"""Recipes whose trial on this machine is a command of README or docs, which another test runs."""
RECIPES = sorted({file.stem for file in (ROOT / "recipes").glob("*.yaml")} - {*IN_PAGES})
NOT_BATCHED = ("deepseek_v2_lite", "qwen3_5_9b")
"""Recipes whose models transformers does not batch continuously: latent and linear attention."""
STAGES = "stages=[tokenize,shuffle,repartition,train,export,infer]"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all, so that recipes with the same data share a store."""
    folder = tmp_path_factory.mktemp("smoke")
    turns = [f"What is {n} and {n}?\tIt is {2 * n}." for n in range(200)]
    (folder / "talk.tsv").write_text("\n".join(turns) + "\n", "utf-8")
    return folder


def test_the_others_are_in_the_pages() -> None:
    for recipe in IN_PAGES:
        assert f"python -m easyllm +recipe={recipe} +smoke=cpu" in SHELL


@pytest.mark.parametrize("recipe", RECIPES)
def test_from_text_to_text(folder: Path, recipe: str) -> None:
    words = [f"+recipe={recipe}", "+smoke=cpu", STAGES, f"run_dir={recipe}"]
    if recipe == "smollm2_pipe":
        words.append("data.sources.conversations.path=talk.tsv")
    else:
        words.append("inference.prompts={first: The statement, second: A class}")
    command = [sys.executable, "-m", "easyllm", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    refused = recipe in NOT_BATCHED
    assert done.returncode == refused, f"{done.stdout}\n{done.stderr}"
    run = folder / recipe
    steps = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert steps and all(step["loss"] > 0 for step in steps)
    checks = json.loads((run / "stages/train.json").read_text("utf-8"))["metrics"]["checks"]
    assert checks["packing"] < 1e-4 and checks["engine_loss"] < 1e-4
    if refused:
        assert "infer failed: transformers cannot batch a" in done.stderr
        assert "give another model, or inference.engine._target_=" in done.stderr
        return
    lines = (run / "inference/results.jsonl").read_text("utf-8").splitlines()
    assert lines and all("text" in json.loads(line) for line in lines)
