"""Runs tasks of lm-eval on a model, and compares it with another one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from easyllm.evaluation.lm_eval.comparison import compared
from easyllm.evaluation.lm_eval.models import loaded
from easyllm.evaluation.lm_eval.report import show
from easyllm.files import atomic_dir, write_json
from easyllm.inference import prompts
from easyllm.models import source
from easyllm.paths import RunPaths
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import flatten, write
from easyllm.tasks import harness
from easyllm.tasks.harness import Results
from easyllm.trackers.async_tracker import AsyncTracker
from easyllm.training.checkpointing import checkpoints


def evaluate(run: RunSpec, console: Console) -> dict[str, Any]:
    """Evaluate the run's model, and the baseline if there is one; returns the stage's metrics.

    Writes ``results.json`` and the items of each task into ``RunPaths.evaluation``.
    """
    folder, place = prompts.model_folder(run), RunPaths(run).evaluation
    asked = run.evaluation.baseline
    baseline = _baseline(run, asked) if asked else None  # a wrong one is refused before any work
    tasks = harness.Harness(run.evaluation.tasks, "evaluation.tasks")
    found = _measured(run, folder, tasks)
    results: dict[str, Any] = {
        "model": prompts.model_name(run), "settings": write(run.evaluation), "seed": run.seed,
        **_shown(found),
    }  # fmt: skip
    with atomic_dir(place) as made:
        _write(made / "samples", found)
        if baseline:
            before = _measured(run, baseline, tasks)
            _write(made / "baseline_samples", before)
            results["baseline"] = {"model": asked, **_shown(before)}
            comparison = {task: compared(found[task], before[task]) for task in found}
            results["comparison"] = comparison
        write_json(made / "results.json", results)
    show(results, console)
    numbers = {
        f"evaluation/{task}/{metric}": values["value"]
        for task, result in found.items()
        for metric, values in result["metrics"].items()
    }
    _track(run, numbers)
    return {
        "items": sum(map(_items, found.values())),
        "results": {task: result["metrics"] for task, result in found.items()},
        **({"comparison": {t: c["metrics"] for t, c in comparison.items()}} if baseline else {}),
    }


def _baseline(run: RunSpec, asked: str) -> Path:
    if asked == "model.path":
        assert run.model.path is not None  # checked with the spec
        return source.folder(run.model.path, RunPaths(run).models, revision=run.model.revision)
    of_run = Path(asked).expanduser() / "export"
    if (of_run / "config.json").is_file():
        return of_run
    return source.folder(asked, RunPaths(run).models)


def _measured(run: RunSpec, folder: Path, tasks: harness.Harness) -> Results:
    with loaded(run, folder) as model:
        return tasks.results(model, run.seed, run.evaluation.chat_template)


def _shown(found: Results) -> dict[str, Any]:
    return {
        "lm_eval": version("lm-eval"),
        "tasks": {
            task: {"metrics": result["metrics"], "items": _items(result),
                   "few_shot": result["few_shot"]}
            for task, result in found.items()
        },
    }  # fmt: skip


def _items(result: Mapping[str, Any]) -> int:
    """Items have a sample for each filter of the task."""
    return len({(sample["task"], sample["doc_id"]) for sample in result["samples"]})


def _write(folder: Path, found: Results) -> None:
    folder.mkdir()
    for task, result in found.items():
        lines = [json.dumps(one, ensure_ascii=False, default=str) for one in result["samples"]]
        text = "".join(f"{line}\n" for line in lines)
        (folder / f"{task}.jsonl").write_text(text, "utf-8")


def _track(run: RunSpec, numbers: Mapping[str, float]) -> None:
    """Send the results of a trained model to the run's trackers."""
    checkpoint, _ = checkpoints.newest(RunPaths(run).checkpoints)
    if checkpoint is None or run.inference.model:
        return
    settings = flatten(write(run))
    for name, tracker in run.training.trackers.items():
        opened = tracker.open(name, RunPaths(run).root, settings, done=checkpoint.step)
        writer = AsyncTracker(name, opened)
        writer.log(checkpoint.step, numbers)
        writer.close()
