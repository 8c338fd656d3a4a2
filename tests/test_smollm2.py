"""The real SmolLM2-135M: fine-tuned in two pipeline stages, exported, and still itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CONVERSATIONS = [
    "Translate: The house is old.\t这座房子很旧。",
    "Translate: Where is the station?\t车站在哪里？\tAnd: When does the train leave?\t火车几点开？",
    "Translate: She reads a book every week.\t她每周读一本书。",
    "Translate: It will rain tomorrow.\t明天会下雨。",
    "Translate: We have two children.\t我们有两个孩子。",
]


def smollm2(folder: Path, run_dir: str, *words: str) -> Path:
    (folder / "talk.tsv").write_text("\n".join(CONVERSATIONS * 8) + "\n", "utf-8")
    command = [sys.executable, "-m", "easyllm", "+recipe=smollm2_pipe", f"run_dir={run_dir}",
               "data.sources.conversations.path=talk.tsv", *words]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return folder / run_dir


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smollm2")


def test_three_steps_and_it_still_knows_paris(folder):
    run = smollm2(folder, "tuned")
    steps = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert [s["step"] for s in steps] == [1, 2, 3]
    assert steps[0]["trained_tokens"] < steps[0]["tokens"], "only answers are trained"
    (answer,) = [json.loads(line) for line in (run / "inference/results.jsonl").open()]
    assert "Paris" in answer["text"]
    (loaded,) = (folder / "runs/models").glob("SmolLM2*/model.safetensors")
    before, after = load_file(loaded), load_file(run / "export/model.safetensors")
    assert before.keys() == after.keys()
    assert any(not before[name].equal(after[name]) for name in before)


def test_no_steps_export_what_was_loaded(folder):
    run = smollm2(folder, "untouched", "training.steps=0", "stages=[tokenize,train,export]")
    (loaded,) = (folder / "runs/models").glob("SmolLM2*/model.safetensors")
    before, after = load_file(loaded), load_file(run / "export/model.safetensors")
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].dtype == after[name].dtype
        assert before[name].equal(after[name]), name
