"""Tasks of EleutherAI's lm-eval, as the spec describes them. It was written for lm-eval 0.4.13."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from easyllm.errors import UserError
from easyllm.spec.evaluation import TaskSpec
from easyllm.spec.problems import near
from easyllm.tasks import builtin

Specs = Mapping[str, TaskSpec | None]
NAMED = ("task", "num_fewshot")
"""The keys of a task that lm-eval knows by its name."""
Results = dict[str, dict[str, Any]]
"""By task: ``metrics``, each with ``value`` and ``stderr``; the ``samples``; and ``few_shot``."""
NO_NETWORK = frozenset({"ConnectionError", "OfflineModeIsEnabled", "HfHubHTTPError",
                        "DatasetNotFoundError", "LocalEntryNotFoundError"})  # fmt: skip
"""Names of the errors of a hub that does not answer, or has no such data."""


class Harness:
    """The tasks at a key of the spec. Raises UserError for a task that does not exist, and for a
    file that describes none."""

    def __init__(self, specs: Specs, key: str):
        from lm_eval import evaluator
        from lm_eval.tasks import TaskManager

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        # it asks git for the commit of the current folder, which complains where there is none
        evaluator.get_git_commit_hash = lambda: None
        self.specs, self.key = specs, key
        self.tasks = {name: _task(name, spec or TaskSpec(), key) for name, spec in specs.items()}
        theirs = [name for name, task in self.tasks.items() if task.keys() <= {*NAMED}]
        # thousands, which takes ten seconds
        self.manager = TaskManager(include_defaults=bool(theirs))
        for name in theirs:
            self._check_name(name)

    def results(self, model: Any, seed: int, chat_template: bool = False) -> Results:
        """What a ``model`` of lm-eval reaches. Raises UserError for what the user can fix."""
        return {name: self._results_of(name, model, seed, chat_template) for name in self.tasks}

    def _check_name(self, name: str) -> None:
        """Raises UserError for a name that lm-eval does not have, or has for several tasks that
        have no results together."""
        manager, key = self.manager, f"{self.key}.{name}"
        if name in manager.all_tags:
            raise UserError(
                f"{key} is a tag of several tasks of lm-eval; give those by their names, which "
                "`lm-eval ls subtasks` lists"
            )
        if name not in manager.all_tasks:
            meant = near(name, manager.all_tasks)
            raise UserError(
                f"{key}: lm-eval {version('lm-eval')} has no such task; "
                f"{meant + ', or ' if meant else ''}give {key}.path=<a YAML file>"
            )

    def _results_of(self, name: str, model: Any, seed: int, chat_template: bool) -> dict[str, Any]:
        from lm_eval import evaluator

        task, spec = self.tasks[name], self.specs[name] or TaskSpec()
        try:
            result = evaluator.simple_evaluate(
                model, tasks=[name if task == {"task": name} else task], limit=spec.limit,
                apply_chat_template=chat_template, task_manager=self.manager, log_samples=True,
                verbosity="ERROR", random_seed=seed, numpy_random_seed=seed,
                torch_random_seed=seed, fewshot_random_seed=seed,
            )  # fmt: skip
        except UserError as error:
            raise UserError(f"{self.key}.{name}: {error}") from None
        except Exception as error:
            raise UserError(_message(f"{self.key}.{name}", error)) from error
        assert result is not None  # it is None on other ranks of a distributed model only
        return _result(name, result)


def _message(key: str, error: Exception) -> str:
    if NO_NETWORK & {kind.__name__ for kind in type(error).__mro__}:
        return (
            f"{key}: its data cannot be fetched from the hub: {error}; give a task whose data are "
            "local files, or run it once where there is a network"
        )
    causes: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(causes) < 3:
        causes.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__
    return f"{key}: lm-eval cannot run it: {'; because of '.join(causes)}"


def _task(name: str, spec: TaskSpec, key: str) -> dict[str, Any]:
    """A task's description; of one of lm-eval's own only ``NAMED``."""
    shots = {} if spec.few_shot is None else {"num_fewshot": spec.few_shot}
    if spec.path is not None:
        described = _read(Path(spec.path), f"{key}.{name}.path")
    elif name in builtin.TASKS:
        described = builtin.TASKS[name]
    else:
        return {"task": name, **shots}
    # Solved examples may come from a task's own items. lm-eval leaves out the one that is asked
    # only where the split of the examples is named.
    splits = ("fewshot_split", "training_split", "validation_split")
    if not any(described.get(split) for split in splits):
        described = {**described, "fewshot_split": described.get("test_split")}
    return {**described, "task": name, **shots}


def _read(file: Path, key: str) -> dict[str, Any]:
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml  # it knows the tags of lm-eval's files

    try:
        values: dict[str, Any] = load_yaml(file)
    except (yaml.YAMLError, ValueError, TypeError, OSError) as error:
        raise UserError(f"{key}={file}: {error}") from error
    if "output_type" not in values and "task" not in values:
        raise UserError(f"{key}={file} describes no task of lm-eval: it has no output_type")
    arguments = values.get("dataset_kwargs") or {}
    if "data_files" in arguments:
        arguments["data_files"] = _absolute(arguments["data_files"], file.parent)
    return values


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
        metrics[metric if kept == "none" else f"{metric}/{kept}"] = {
            "value": float(value),
            "stderr": float(error) if isinstance(error, int | float) else None,
        }
    samples = [
        {"task": task, **sample}
        for task, held in (result.get("samples") or {}).items()
        for sample in held
    ]
    return {
        "metrics": metrics, "samples": samples, "few_shot": (result.get("n-shot") or {}).get(name),
    }  # fmt: skip
