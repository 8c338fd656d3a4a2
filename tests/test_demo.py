"""`make demo`: the main job, whole, as a newcomer runs it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = ("tokenize", "shuffle", "repartition", "train", "export", "infer")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def make_demo(run_dir: Path) -> subprocess.CompletedProcess[str]:
    command = ["make", "demo", f"ARGS=run_dir={run_dir}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("demo") / "run"
    done = make_demo(run_dir)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    for words in ("tokens/s", "loss", "Next", "export"):
        assert words in done.stdout
    return run_dir


def test_what_it_says_to_try_next_works(demo):
    done = make_demo(demo)
    (line,) = [line for line in done.stdout.splitlines() if "ask it something" in line]
    command = shlex.split(line.partition("python -m ")[2])
    asked = [sys.executable, "-m", *command, f"run_dir={demo.parent / 'asked'}"]
    answer = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "Once upon a time" in answer.stdout


def test_learns(demo):
    losses = [json.loads(line)["loss"] for line in (demo / "metrics.jsonl").open()]
    assert losses[-1] < 0.6 * losses[0]


def test_every_stage_is_done(demo):
    records = [json.loads((demo / f"stages/{stage}.json").read_text()) for stage in STAGES]
    assert [r["status"] for r in records] == ["done"] * len(STAGES)


def test_again_passes_everything_over(demo):
    done = make_demo(demo)
    assert done.returncode == 0
    assert done.stderr.count("up to date; skipped") == len(STAGES)


EVALUATE = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
try:
    import easyllm
except ImportError:
    pass
else:
    sys.exit("easyllm must not be importable here")
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
AutoTokenizer.from_pretrained(sys.argv[1])
total, count = 0.0, 0
for line in open(sys.argv[2]):
    row = json.loads(line)
    ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
    with torch.no_grad():
        trained = int((labels[:, 1:] != -100).sum())
        if trained:
            total += float(model(ids, labels=labels).loss) * trained
            count += trained
print(total / count)
"""


def test_export_loads_without_easyllm_and_has_the_recorded_loss(demo, tmp_path):
    """In an interpreter that has the dependencies and not this package."""
    site = next(p for p in sys.path if p.endswith("site-packages"))
    # -S and -I: neither the editable install's .pth nor the current folder is read
    code = f"import sys; sys.path.append({site!r})\n{EVALUATE}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(demo / "export"), str(demo / "heldout.jsonl")],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    recorded = json.loads((demo / "stages/train.json").read_text())["metrics"]["eval_loss"]
    assert float(done.stdout) == pytest.approx(recorded, abs=1e-4)
