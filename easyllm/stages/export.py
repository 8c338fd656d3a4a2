"""Turns a checkpoint into a plain Hugging Face folder or a GGUF file, in one process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easyllm.errors import UserError
from easyllm.files import clear_leftovers
from easyllm.spec.run import RunSpec
from easyllm.stages.base import Rank, Stage
from easyllm.training.checkpointing import checkpoints


class Export(Stage):
    name = "export"
    reads = ("export",)

    def require(self, run: RunSpec) -> None:
        if "train" not in run.stages and self._found(run) is None:
            raise UserError(_missing(run, self.paths(run).checkpoints))

    def fetches(self, run: RunSpec) -> bool:
        return run.training.adapter is not None  # it is merged into the model

    def record(self, run: RunSpec) -> str:
        kind = self.paths(run).export.name  # export, adapter or gguf
        if self.asked(run) or kind == self.name:
            return super().record(run)
        return f"{self.name}-{kind}"

    def asked(self, run: RunSpec) -> str | None:
        return run.export.output

    def inputs(self, run: RunSpec) -> list[Path]:
        found = self._found(run)
        return [found.path / checkpoints.MANIFEST] if found else []

    def outputs(self, run: RunSpec) -> list[Path]:
        alone, folder = run.export.adapter == "adapter", self.paths(run).export
        if run.export.format == "gguf" and not alone:
            return [self.paths(run).gguf]
        first = folder / ("adapter_config.json" if alone else "config.json")
        return [first, *(f for f in sorted(folder.rglob("*")) if f.is_file() and f != first)]

    def work(self, run: RunSpec, rank: Rank) -> Mapping[str, Any]:
        checkpoint = self._found(run)
        if checkpoint is None:
            raise UserError(_missing(run, self.paths(run).checkpoints))
        read = [name for name in checkpoint.files if name.startswith(f"{checkpoints.WEIGHTS}/")]
        if damage := checkpoint.changed(read, threads=min(8, os.cpu_count() or 1)):
            raise UserError(
                f"{checkpoint.path} is damaged: {damage[0]}; give export.checkpoint=<another>"
            )
        from easyllm.training.export.hf import export

        clear_leftovers(self.paths(run).export)
        return export(checkpoint, self.paths(run).export, run)

    def _found(self, run: RunSpec) -> checkpoints.Checkpoint | None:
        if run.export.checkpoint:
            return checkpoints.opened(Path(run.export.checkpoint).expanduser())
        return checkpoints.newest(self.paths(run).checkpoints)[0]


def _missing(run: RunSpec, root: Path) -> str:
    if run.export.checkpoint:
        return (
            f"export.checkpoint={run.export.checkpoint} is not a whole checkpoint; give a folder "
            f"such as {checkpoints.location(root, 100)}"
        )
    return (
        f"{root} has no whole checkpoint to export; add train to stages, or give export.checkpoint"
    )
