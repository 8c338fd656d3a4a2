"""Shows what training will read, in the terminal and as a page in the run's directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easyllm.data.store import manifest
from easyllm.files import atomic_write
from easyllm.progress import on_terminal
from easyllm.spec.run import RunSpec
from easyllm.stages.base import Rank, Stage

WIDTH = 100
"""Columns of the printed tables: a stage's output goes through a pipe, which has no width."""


class Inspect(Stage):
    """Runs every time: a record that it was shown before would not help the user."""

    name = "inspect"
    reads = (
        "seed",
        "data.sources",
        "data.dir",
        "data.seq_len",
        "data.packing",
        "data.long_conversations",
        "training.evaluate",
    )

    def require(self, run: RunSpec) -> None:
        store = self.paths(run).store
        if manifest.last_stage(run, store) is None:
            manifest.require(store, "tokenize")

    def inputs(self, run: RunSpec) -> list[Path]:
        store = self.paths(run).store
        return [manifest.location(store, stage) for stage in manifest.STAGES]

    def outputs(self, run: RunSpec) -> list[Path]:
        return []

    def work(self, run: RunSpec, rank: Rank) -> Mapping[str, Any]:
        from rich.console import Console

        from easyllm.data.inspect.inspection import inspect
        from easyllm.data.inspect.report import page, show

        found = inspect(run)
        show(found, Console(force_terminal=on_terminal(), width=WIDTH))
        with atomic_write(self.paths(run).inspection) as temporary:
            temporary.write_text(page(found), "utf-8")
        return {**found.metrics, "page": str(self.paths(run).inspection)}
