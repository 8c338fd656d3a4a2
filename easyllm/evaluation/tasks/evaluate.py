"""Runs tasks of lm-eval on a model, and compares it with another one."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from easyllm.errors import UserError
from easyllm.evaluation.tasks import builtin
from easyllm.evaluation.tasks.comparison import compared
from easyllm.evaluation.tasks.models import loaded
from easyllm.evaluation.tasks.report import show
from easyllm.files import atomic_write, write_json
from easyllm.inference import prompts
from easyllm.models import source
from easyllm.paths import RunPaths
from easyllm.spec.evaluation import TaskSpec
from easyllm.spec.problems import near
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import flatten, write
from easyllm.trackers.async_tracker import AsyncTracker
from easyllm.training.checkpointing import checkpoints

Results = dict[str, dict[str, Any]]
"""By task: ``metrics``, each with its ``value`` and ``stderr``, and the ``samples``."""


def evaluate(run: RunSpec, console: Console) -> dict[str, Any]:
    """Evaluate the run's model, and the baseline if there is one; returns the stage's metrics.

    Writes ``results.json`` and the items of each task into the folder ``evaluation`` of the run.
    Results of other tasks that are there are kept.
    """
    folder, place = prompts.model_folder(run), RunPaths(run).evaluation
    found = _measured(run, folder)
    results = {"model": prompts.model_name(run), **_shown(found)}
    _write(place / "samples", found)
    if baseline := run.evaluation.baseline:
        before = _measured(run, _baseline(run, baseline))
        _write(place / "baseline_samples", before)
        results["baseline"] = {"model": baseline, **_shown(before)}
        comparison = {task: compared(found[task], before[task]) for task in found}
        results["comparison"] = comparison
    write_json(place / "results.json", _beside_others(place / "results.json", results))
    show(results, console)
    numbers = {
        f"evaluation/{task}/{metric}": values["value"]
        for task, result in found.items()
        for metric, values in result["metrics"].items()
    }
    _track(run, numbers)
    return {
        "items": sum(len(result["samples"]) for result in found.values()),
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


def _measured(run: RunSpec, folder: Path) -> Results:
    import lm_eval
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    described = {name: _task(name, task) for name, task in run.evaluation.tasks.items()}
    theirs = [name for name, task in described.items() if isinstance(task, str)]
    manager = TaskManager(include_defaults=bool(theirs))
    for name in theirs:
        if name not in manager.all_tasks:
            meant = near(name, manager.all_tasks)
            raise UserError(
                f"evaluation.tasks.{name}: lm-eval {version('lm-eval')} has no such task; "
                f"{meant + ', or ' if meant else ''}give evaluation.tasks.{name}.path=<a YAML file>"
            )
    found: Results = {}
    with loaded(run, folder) as model:
        for name, task in described.items():
            spec = run.evaluation.tasks[name] or TaskSpec()
            given: Any = {"task": task} if isinstance(task, str) else dict(task)
            if spec.few_shot is not None:
                given["num_fewshot"] = spec.few_shot
            only_name = isinstance(task, str) and spec.few_shot is None
            try:
                result = lm_eval.simple_evaluate(
                    model, tasks=[task if only_name else given], limit=spec.limit,
                    apply_chat_template=run.evaluation.chat_template, task_manager=manager,
                    random_seed=run.seed, numpy_random_seed=run.seed, torch_random_seed=run.seed,
                    fewshot_random_seed=run.seed, log_samples=True, verbosity="ERROR",
                )  # fmt: skip
            except Exception as error:
                raise _said(name, error) from error
            assert result is not None  # it is None on other ranks of a distributed model only
            found[name] = _result(name, result)
    return found


def _said(name: str, error: Exception) -> Exception:
    """An error of lm-eval in the user's words; one of the model's own is left as it is."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, UserError):
        return error
    if kinds & {"ConnectionError", "OfflineModeIsEnabled", "HfHubHTTPError", "DatasetNotFoundError",
                "LocalEntryNotFoundError"}:  # fmt: skip
        return UserError(
            f"evaluation.tasks.{name}: its data cannot be fetched from the hub: {error}; give a "
            "task whose data are local files, or run it once where there is a network"
        )
    return UserError(f"evaluation.tasks.{name}: lm-eval cannot run it: {error}")


def _task(name: str, spec: TaskSpec | None) -> dict[str, Any] | str:
    """A task's description; for one of lm-eval's own its name. Raises UserError."""
    if spec is None or spec.path is None:
        return builtin.config(name) or name
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml  # 0.4.13; it knows the tags of its files

    file = Path(spec.path)
    try:
        values: dict[str, Any] = load_yaml(file)
    except (yaml.YAMLError, ValueError, TypeError, OSError) as error:
        raise UserError(f"evaluation.tasks.{name}.path={file}: {error}") from error
    if not isinstance(values, dict) or ("output_type" not in values and "task" not in values):
        raise UserError(
            f"evaluation.tasks.{name}.path={file} describes no task of lm-eval: it has no "
            "output_type"
        )
    arguments = values.get("dataset_kwargs") or {}
    if "data_files" in arguments:
        arguments["data_files"] = _absolute(arguments["data_files"], file.parent)
    return {**values, "task": name}


def _absolute(given: Any, folder: Path) -> Any:
    if isinstance(given, Mapping):
        return {key: _absolute(value, folder) for key, value in given.items()}
    if isinstance(given, list):
        return [_absolute(value, folder) for value in given]
    return given if "://" in str(given) else str(folder / str(given))


def _result(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """lm-eval's result of one task, or of one group, whose tasks' samples are joined."""
    values = {**result["results"], **(result.get("groups") or {})}[name]
    metrics = {}
    for key, value in values.items():
        metric, _, kept = key.partition(",")
        if not kept or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}_stderr,{kept}")
        shown = metric if kept == "none" else f"{metric}/{kept}"
        numeric = isinstance(error, int | float)
        metrics[shown] = {"value": float(value), "stderr": float(error) if numeric else None}
    samples = [
        {"task": task, **sample}
        for task, held in (result.get("samples") or {}).items()
        for sample in held
    ]
    shots = (result.get("n-shot") or {}).get(name)
    return {"metrics": metrics, "samples": samples, "few_shot": shots}


def _shown(found: Results) -> dict[str, Any]:
    return {
        "lm_eval": version("lm-eval"),
        "tasks": {
            task: {"metrics": result["metrics"], "items": len(result["samples"]),
                   "few_shot": result["few_shot"]}
            for task, result in found.items()
        },
    }  # fmt: skip


def _beside_others(file: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """``results`` with those of other tasks that ``file`` has; those of a comparison only if it was
    with the same baseline."""
    try:
        there = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return dict(results)
    merged: dict[str, Any] = {**results, "tasks": {**there.get("tasks", {}), **results["tasks"]}}
    before = there.get("baseline")
    if before and before["model"] == results.get("baseline", before)["model"]:
        now = results.get("baseline", before)
        merged["baseline"] = {**now, "tasks": {**before["tasks"], **now["tasks"]}}
        merged["comparison"] = {**there["comparison"], **results.get("comparison", {})}
    return merged


def _write(folder: Path, found: Results) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for task, result in found.items():
        lines = [json.dumps(one, ensure_ascii=False, default=str) for one in result["samples"]]
        with atomic_write(folder / f"{task}.jsonl") as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), "utf-8")


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
