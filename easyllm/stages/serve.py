"""Answers requests over HTTP with the trained model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easyllm.inference import prompts
from easyllm.spec.run import RunSpec
from easyllm.stages.base import Rank, Stage


class Serve(Stage):
    """Runs until it is stopped and leaves no files."""

    name = "serve"
    only_reads = True
    reads = ("serving", *prompts.KEYS)

    def require(self, run: RunSpec) -> None:
        if "export" not in run.stages:
            prompts.model_path(run)

    def fetches(self, run: RunSpec) -> bool:
        return prompts.of_model(run)

    def inputs(self, run: RunSpec) -> list[Path]:
        return prompts.model_files(run)

    def outputs(self, run: RunSpec) -> list[Path]:
        return []

    def work(self, run: RunSpec, rank: Rank) -> Mapping[str, Any]:
        from easyllm.serving.run import serve

        return serve(run)
