"""Answers the prompts with the trained model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easyllm.inference import prompts
from easyllm.spec.run import RunSpec
from easyllm.stages.base import Rank, Stage


class Infer(Stage):
    name = "infer"
    reads = prompts.KEYS

    def require(self, run: RunSpec) -> None:
        if "export" not in run.stages:
            prompts.model_path(run)

    def asked(self, run: RunSpec) -> str | None:
        return run.inference.output

    def fetches(self, run: RunSpec) -> bool:
        return prompts.of_model(run)

    def inputs(self, run: RunSpec) -> list[Path]:
        given = run.inference.prompts
        return [*prompts.model_files(run), *([Path(given)] if isinstance(given, str) else [])]

    def outputs(self, run: RunSpec) -> list[Path]:
        return [self.paths(run).results]

    def work(self, run: RunSpec, rank: Rank) -> Mapping[str, Any]:
        from easyllm.inference.batch.run import infer

        return infer(run)
