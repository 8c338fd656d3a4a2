"""Compares the trained model with what is served, program by program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from easyllm.errors import UserError
from easyllm.inference import prompts
from easyllm.progress import on_terminal
from easyllm.spec.run import RunSpec
from easyllm.stages.base import Rank, Stage

WIDTH = 110
"""Columns of the printed table: a stage's output goes through a pipe, which has no width."""


class Verify(Stage):
    """Runs every time: what is served may have changed since."""

    name = "verify"
    reads = ("verify", "data", "training", *prompts.KEYS)

    def may_change(self, run: RunSpec, key: str) -> bool:
        return True

    def require(self, run: RunSpec) -> None:
        adapter = self.paths(run).export / "adapter_config.json"
        if "export" not in run.stages and not adapter.exists():
            prompts.model_path(run)

    def fetches(self, run: RunSpec) -> bool:
        return prompts.of_model(run) or run.training.adapter is not None

    def inputs(self, run: RunSpec) -> list[Path]:
        return prompts.model_files(run)

    def outputs(self, run: RunSpec) -> list[Path]:
        return []

    def work(self, run: RunSpec, rank: Rank) -> Mapping[str, Any]:
        from rich.console import Console

        from easyllm.evaluation.verify.report import show
        from easyllm.evaluation.verify.verify import verify
        from easyllm.files import write_json

        found = verify(run)
        write_json(self.paths(run).verification, {**asdict(found), "model": str(found.model)})
        show(found.comparisons, Console(force_terminal=on_terminal(), width=WIDTH))
        if first := found.first_difference:
            raise UserError(
                f"{first.name} ({first.between}): {first.found}. Usually: {first.means}"
            )
        by_status = {
            status: [one.name for one in found.comparisons if one.status == status]
            for status in ("same", "not compared")
        }
        return {"compared": len(by_status["same"]), "skipped": by_status["not compared"]}
