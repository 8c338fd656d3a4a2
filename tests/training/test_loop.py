"""Saving while training goes on, a budget of time, what the steps say of their time, profiles."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from easyllm.spec.checks import problems
from easyllm.spec.problems import SpecError
from easyllm.spec.schema import read, write
from easyllm.training.checkpointing import checkpoints
from easyllm.training.checkpointing.saving import Saver
from easyllm.training.metrics.step_metrics import progress_fields
from easyllm.training.save_policy import SavePolicy
from easyllm.training.stopping import Stop
from tests.support import run_spec
from tests.training.conftest import GLOBAL_BATCH, RESUMED, Trained
from tests.training.test_runs import losses

PHASES = ("data", "forward", "backward", "communication", "optimizer", "bubble")


def folder(trained: Trained, run: str) -> Path:
    return trained.root / run / "run" / "checkpoints"


@pytest.mark.parametrize("layout", RESUMED)
def test_saving_meanwhile_saves_the_same(many_runs: Trained, layout: str) -> None:
    run = f"async-{layout}"
    assert losses(many_runs, run) == losses(many_runs, f"whole-{layout}")
    found = checkpoints.listed(folder(many_runs, run))
    assert [path.name for path in found] == [f"step-0000000{step}" for step in (4, 3, 2, 1)]
    for path in found:  # written whole while the weights went on changing
        one = checkpoints.opened(path)
        assert one and not one.changed(one.files)
    whole = checkpoints.opened(folder(many_runs, f"whole-{layout}") / "step-00000004")
    last = checkpoints.opened(folder(many_runs, run) / "step-00000004")
    assert whole and last and last.files == whole.files
    earlier = checkpoints.opened(folder(many_runs, run) / "step-00000003")
    assert earlier and earlier.files != whole.files
    assert not list(folder(many_runs, run).glob(".step*"))


@pytest.mark.parametrize("layout", RESUMED)
def test_what_a_save_costs_is_told(many_runs: Trained, layout: str) -> None:
    lines = many_runs.metrics(f"async-{layout}")
    assert "save_seconds" not in lines[0]
    assert all(line["save_seconds"] > 0 for line in lines[1:])
    saved = [line["saved_step"] for line in lines if "saved_step" in line]
    # where two became whole between two lines, the newer one is told
    assert saved == sorted(set(saved)) and set(saved) <= {1, 2, 3} and saved[-1] >= 2
    for line in lines:
        if "saved_step" in line:
            assert line["saved_step"] < line["step"] and line["write_seconds"] > 0


def test_a_signal_waits_for_what_is_being_saved(many_runs: Trained) -> None:
    stopped = many_runs.seen("async-stopped", "async-broken")[0]
    assert stopped["error"].startswith("Stopped: stopped by a signal")
    assert stopped["checkpoints"] == ["step-00000001", "step-00000002"]
    assert min(many_runs.seen("async-resumed", "async-broken")[0]["samples"]) == 2 * GLOBAL_BATCH
    assert losses(many_runs, "", "async-broken") == losses(many_runs, "whole-zero3")


def test_a_run_gone_wild_names_what_was_being_saved(many_runs: Trained) -> None:
    assert "norm of the gradient" in many_runs.seen("async-wild")[0]["error"]
    assert [path.name for path in folder(many_runs, "async-wild").iterdir()] == ["step-00000001"]


def test_a_start_ends_when_its_time_is_spent(many_runs: Trained) -> None:
    first, second, third = (many_runs.seen(f"budget-{number}", "budget") for number in range(3))
    # one step at least, and only what fits: a step takes over 0.3 s for each of eight samples
    for number, seen in enumerate((first, second), 1):
        for rank in seen:
            assert rank["error"].startswith("Stopped: training.max_runtime=")
            assert rank["error"].endswith(f"saved at step {number} of 4")
    assert max(second[0]["samples"]) == 3 * GLOBAL_BATCH - 1  # and what the next would train on
    assert third[0]["report"]["steps"] == 4
    assert losses(many_runs, "", "budget") == losses(many_runs, "whole-pipe")


def test_a_step_is_not_begun_that_would_not_end_in_time(tmp_path: Path) -> None:
    stop = Stop()
    stop.begun = time.monotonic() - 100

    def spent(limit: float | None, step: float, save: float) -> bool:
        config = {} if limit is None else {"training": {"max_runtime": limit}}
        saver = cast(Saver, SimpleNamespace(longest=save))
        policy = SavePolicy(run_spec(tmp_path, config).training, saver)
        policy.stepped(step)
        policy.stepped(step / 2)
        return policy.out_of_time(stop)

    assert not spent(150, 20, 20)
    assert spent(150, 20, 40)
    assert spent(150, 60, 0)
    assert not spent(None, 60, 60)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("90m", 5400), ("2h", 7200), ("1d12h", 129600), ("1h 30s", 3630), ("1.5h", 5400), (90, 90)],
)
def test_lengths_of_time(tmp_path: Path, given: object, seconds: float) -> None:
    run = run_spec(tmp_path, {"training": {"max_runtime": given}})
    assert run.training.max_runtime == seconds
    from easyllm.components import resolver

    again, found = read(write(run), resolver())
    assert not found and again.training.max_runtime == seconds


@pytest.mark.parametrize("given", ["soon", "2 hours", "h", "", "1.2.3h", "0s", -5, "30m1h", True])
def test_what_is_no_length_of_time_is_refused(tmp_path: Path, given: object) -> None:
    with pytest.raises(SpecError, match=r"training\.max_runtime"):
        run_spec(tmp_path, {"training": {"max_runtime": given}})


@pytest.mark.parametrize("layout", ["zero0", "zero1", "zero3", "pipe"])
def test_the_parts_of_a_step_add_up(many_runs: Trained, layout: str) -> None:
    name = f"skipping-{layout}" if layout == "zero0" else f"whole-{layout}"
    for line in many_runs.metrics(name):
        parts = {phase: line[f"{phase}_seconds"] for phase in PHASES}
        # the rest is Python in between
        assert 0.7 * line["seconds"] < sum(parts.values()) <= line["seconds"]
        busy = [phase for phase, seconds in parts.items() if seconds > 0]
        assert busy == [phase for phase in PHASES if layout == "pipe" or phase != "bubble"]


def test_time_is_told_where_it_goes(many_runs: Trained) -> None:
    *lines, last = many_runs.metrics("profiled")
    for line in lines:
        # eight samples of the next step on each of two ranks, 0.02 s each
        assert 0.16 <= line["data_seconds"] <= line["seconds"]
    assert last["data_seconds"] < 0.16  # it reads nothing more


def test_steps_are_profiled_on_demand(many_runs: Trained) -> None:
    marked = [line.get("profiled", False) for line in many_runs.metrics("profiled")]
    assert marked == [False, True, True, False]
    place = many_runs.root / "profiled" / "run" / "profile" / "step-00000002"
    names = [f"rank-{rank}.{kind}" for rank in (0, 1) for kind in ("json.gz", "txt")]
    assert sorted(path.name for path in place.iterdir()) == sorted(names)
    for rank in (0, 1):
        trace = json.loads(gzip.decompress((place / f"rank-{rank}.json.gz").read_bytes()))
        operations = [event["name"] for event in trace["traceEvents"]]
        assert "aten::mm" in operations and any("gloo" in name for name in operations)
        # both steps, four micro-batches each; the last stage has the loss, the first has not
        assert operations.count("aten::cross_entropy_loss") == 8 * rank
        assert "aten::mm" in (place / f"rank-{rank}.txt").read_text("utf-8")
    assert losses(many_runs, "profiled") == losses(many_runs, "whole-pipe")


def test_a_profile_after_the_end_is_refused(tmp_path: Path) -> None:
    config = {"training": {"steps": 10, "profile": {"start": 9, "steps": 3}}}
    found = [p for p in problems(run_spec(tmp_path, config)) if p.key == "training.profile.start"]
    assert len(found) == 1 and found[0].remedy == "give at most 8"
    config = {"training": {"steps": 10, "profile": {"start": 8, "steps": 3}}}
    assert not [p for p in problems(run_spec(tmp_path, config)) if "profile" in p.key]


def test_what_the_console_says() -> None:
    line = {
        "loss": 2.34567, "tokens_per_second": 12345.6, "tokens_per_second_per_device": 6172.8,
        "mfu": 0.4567, "memory_gb": 3.14,
    }  # fmt: skip
    assert progress_fields(line) == {
        "loss": "2.346", "tok/s": "12,346", "tok/s/device": "6,173", "MFU": "45.7%",
        "memory": "3.1GB",
    }  # fmt: skip
    alone = {**line, "loss": None, "tokens_per_second_per_device": 12345.6}
    del alone["mfu"]
    assert progress_fields(alone) == {"loss": "skipped", "tok/s": "12,346", "memory": "3.1GB"}
