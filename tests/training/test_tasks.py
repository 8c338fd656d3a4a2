"""Tasks of lm-eval during training give what they give on the exported model."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from easyllm.evaluation.lm_eval.evaluate import evaluate
from easyllm.files import read_json
from easyllm.paths import RunPaths
from easyllm.preflight.places import problems
from easyllm.stages import load
from easyllm.stages.base import Rank
from tests.evaluation.test_evaluate import local_task
from tests.support import merged, run_spec
from tests.training.conftest import PIPELINE, ZERO, Small, Trained, launch

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pipe2": ({"_target_": PIPELINE}, {}),
    "zero1": ({"_target_": ZERO, "zero_stage": 1}, {"data": {"packing": "none"}}),
    "zero3": ({"_target_": ZERO, "zero_stage": 3}, {"training": {"loss": "linear_cross_entropy"}}),
}
STEPS = 2


def config(small: Small, name: str, tasks: dict[str, Any]) -> dict[str, Any]:
    layout, over = CASES[name]
    training = {"steps": STEPS, "evaluate": {"every": 1, "tasks": tasks, "fraction": 0.0}}
    return merged(merged(small.config("untied", layout, 2), {"training": training}), over)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # a score that changes with every log-probability
    metrics = [{"metric": "acc"}, {"metric": "brier_score", "higher_is_better": False}]
    return local_task(tmp_path_factory.mktemp("task"), metric_list=metrics)


@pytest.fixture(scope="module")
def trained(small: Small, task: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    tasks = {"mine": {"path": str(task)}}
    cases = [{"name": name, "config": config(small, name, tasks)} for name in CASES]
    cases.append({"name": "without", "config": config(small, "pipe2", {})})
    generating = local_task(
        tmp_path_factory.mktemp("generating"), output_type="generate_until", doc_to_choice=None,
        doc_to_target="{{choices[answer]}}",
    )  # fmt: skip
    asked = {"told": {"path": str(generating)}}
    cases.append({"name": "generating", "config": config(small, "pipe2", asked)})
    return launch(tmp_path_factory.mktemp("tasks"), 2, cases)


@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_the_exported_model(
    small: Small, trained: Trained, task: Path, name: str
) -> None:
    lines = trained.metrics(name)
    assert len(lines) == STEPS
    for line in lines:
        assert {"tasks/mine/acc", "tasks/mine/acc_stderr", "tasks/mine/brier_score"} <= set(line)
    assert lines[0]["tasks/mine/brier_score"] != lines[1]["tasks/mine/brier_score"]
    over = {"evaluation": {"tasks": {"mine": {"path": str(task)}}}}
    plain = merged(config(small, name, {}), over)
    run = run_spec(trained.root / name, plain)
    load("export").work(run, Rank())
    evaluate(run, Console(file=StringIO()))
    results = read_json(RunPaths(run).evaluation / "results.json")
    expected = results["tasks"]["mine"]["metrics"]
    for metric in ("acc", "brier_score"):
        found = lines[-1][f"tasks/mine/{metric}"]
        assert found == pytest.approx(expected[metric]["value"], abs=1e-5)


def test_training_is_the_same_with_tasks(trained: Trained) -> None:
    without, among = (
        [(line["loss"], line["grad_norm"]) for line in trained.metrics(name)]
        for name in ("without", "pipe2")
    )
    assert among == without


def test_answers_that_are_generated_are_refused_on_every_rank(trained: Trained) -> None:
    errors = [seen["error"] for seen in trained.seen("generating")]
    assert len(errors) == 2 and errors[0] == errors[1]
    assert "training.evaluate.tasks.told: its answers are generated" in errors[0]


def test_a_file_that_is_not_there(small: Small, tmp_path: Path) -> None:
    plain = config(small, "pipe2", {"mine": {"path": str(tmp_path / "absent.yaml")}})
    (found,) = [p for p in problems(run_spec(tmp_path, plain)) if "tasks" in p.key]
    assert found.key == "training.evaluate.tasks.mine.path"
