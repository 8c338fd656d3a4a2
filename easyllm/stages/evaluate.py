"""Measures what the trained model can do, on tasks of lm-eval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easyllm.inference import prompts
from easyllm.progress import on_terminal
from easyllm.spec.run import RunSpec
from easyllm.stages.base import Rank, Stage

WIDTH = 110
"""Columns of the printed table: a stage's output goes through a pipe, which has no width."""


class Evaluate(Stage):
    name = "evaluate"
    reads = ("evaluation", *prompts.KEYS)

    def record(self, run: RunSpec) -> str:
        return f"{self.name}-{self.paths(run).evaluation.name}"

    def require(self, run: RunSpec) -> None:
        if "export" not in run.stages:
            prompts.model_path(run)

    def fetches(self, run: RunSpec) -> bool:
        return prompts.of_model(run) or run.evaluation.baseline == "model.path"

    def inputs(self, run: RunSpec) -> list[Path]:
        from easyllm.tasks.files import read_by

        paths = [Path(task.path) for task in run.evaluation.tasks.values() if task and task.path]
        return [
            *prompts.model_files(run),
            *paths,
            *(file for path in paths for file in read_by(path)),
        ]

    def outputs(self, run: RunSpec) -> list[Path]:
        return [self.paths(run).evaluation / "results.json"]

    def work(self, run: RunSpec, rank: Rank) -> Mapping[str, Any]:
        from rich.console import Console

        from easyllm.evaluation.lm_eval.evaluate import evaluate

        return evaluate(run, Console(force_terminal=on_terminal(), width=WIDTH))
