"""Runs that change their layout on the way, or die while saving, train as if they had not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import merged
from tests.training.conftest import (
    GLOBAL_BATCH,
    MOVES,
    RESUMED,
    STEPS,
    Small,
    Trained,
    launch,
)
from tests.training.test_layouts import check_losses


@pytest.mark.parametrize("chain", MOVES)
def test_the_optimizer_moves_to_another_layout(
    small: Small, moved: tuple[Trained, Trained], chain: str
) -> None:
    model, _ = MOVES[chain]
    check_losses(small, moved[1], model, chain, run=chain)


@pytest.mark.parametrize("chain", MOVES)
def test_the_samples_stay_in_order(moved: tuple[Trained, Trained], chain: str) -> None:
    two, one = moved
    for place, (trained, steps) in enumerate([(two, (0, 2)), (two, (2, 4)), (one, (4, STEPS))]):
        drawn = {i for seen in trained.seen(f"{chain}-{place}", chain) for i in seen["samples"]}
        ahead = place < 2  # what is stopped has read the next step's too
        assert drawn == set(range(steps[0] * GLOBAL_BATCH, (steps[1] + ahead) * GLOBAL_BATCH))


def test_a_moved_run_says_so(moved: tuple[Trained, Trained]) -> None:
    log = moved[1].log(0)
    assert "parallelism.zero_stage: then 0, now 3" not in log
    assert "parallelism.zero_stage: then 1, now 3" in log
    assert "parallelism.data_parallel: then 2, now 1" in log


@pytest.mark.parametrize(
    ("rank", "asynchronous"),
    [(0, False), *(pytest.param(1, late, marks=pytest.mark.slow) for late in (False, True))],
)
def test_a_rank_killed_while_saving_costs_nothing(
    small: Small, many_runs: Trained, tmp_path: Path, rank: int, asynchronous: bool
) -> None:
    name = ("pipe", "zero3")[rank]
    over = {"training": {"steps": 4, "checkpoint": {"every": 1, "asynchronous": asynchronous}}}
    case = {"name": name, "config": merged(small.config("tied", RESUMED[name], 2), over)}
    launch(tmp_path, 2, [{**case, "killed_saving": (rank, 3)}], expected=128 + signal.SIGKILL)
    root = tmp_path / name / "run" / "checkpoints"
    assert sorted(path.name for path in root.glob("step-*")) == ["step-00000001", "step-00000002"]
    if rank == 0:  # who lives on cleans up
        assert list(root.glob(".step-00000003*")), "it must have died while saving"
    resumed = launch(tmp_path, 2, [case])
    assert min(resumed.seen(name)[0]["samples"]) == 2 * GLOBAL_BATCH
    found, whole = resumed.metrics(name), many_runs.metrics(f"whole-{name}")
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    for key in ("loss", "grad_norm", "lr", "trained_tokens"):
        assert [line[key] for line in found] == [line[key] for line in whole]
    assert not list(root.glob(".step-*"))


SMALL_DISK = """
import json, subprocess, sys
from pathlib import Path
from tests.training.conftest import launch
root, size, cases = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
place = root / cases[0]["name"] / "run"
place.mkdir(parents=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], check=True)
launch(root, 2, cases)
subprocess.run(["cp", "-a", str(place), str(root / "left")], check=True)
"""


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_leaves_what_was_saved(
    small: Small, many_runs: Trained, tmp_path: Path, asynchronous: bool
) -> None:
    apart = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("no mount of its own here: `unshare --user --mount` is not allowed")
    saved = next((many_runs.root / "whole-zero1" / "run" / "checkpoints").glob("step-*"))
    size = sum(file.stat().st_size for file in saved.rglob("*") if file.is_file())
    checkpoint = {"every": 1, "keep": 1, "asynchronous": asynchronous}
    over = {"training": {"steps": 4, "checkpoint": checkpoint}}
    config = merged(small.config("tied", RESUMED["zero1"], 2), over)
    cases = [
        {"name": "full", "config": config},
        {"name": "roomy", "run": "full", "config": config, "disk": 4 * size},
    ]
    script = [sys.executable, "-c", SMALL_DISK, str(tmp_path), str(int(1.6 * size))]
    done = subprocess.run([*apart, *script, json.dumps(cases)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    trained = Trained(tmp_path, 2)
    for seen in trained.seen("full"):
        assert seen["error"].startswith("UserError")
        assert "step-00000002 could not be saved" in seen["error"]
        assert "No space left on device" in seen["error"]
    assert trained.seen("full")[0]["checkpoints"] == ["step-00000001"], "nothing half-made"
    assert min(trained.seen("roomy", "full")[0]["samples"]) == GLOBAL_BATCH
    lines = [json.loads(line) for line in (tmp_path / "left" / "metrics.jsonl").open()]
    assert [line["loss"] for line in lines] == [
        line["loss"] for line in many_runs.metrics("whole-zero1")
    ]
