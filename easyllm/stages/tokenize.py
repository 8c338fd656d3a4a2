"""Turns texts into token ids in parquet files."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easyllm.data.store import manifest
from easyllm.spec.run import RunSpec
from easyllm.stages.base import Rank, Stage


class Tokenize(Stage):
    name = "tokenize"
    reads = (
        "data.sources",
        "data.dir",
        "data.tokenizer",
        "data.template",
        "data.compression",
        "data.rows_per_file",
        "data.max_documents",
        "model.path",
        "model.revision",
    )

    def may_change(self, run: RunSpec, key: str) -> bool:
        # a model that is chosen later does not change the tokens
        return key == "model.revision" and not self.fetches(run)

    def fetches(self, run: RunSpec) -> bool:
        return run.data.tokenizer.of_model(run)

    def inputs(self, run: RunSpec) -> list[Path | str]:
        sources = [file for reader in run.data.sources.values() for file in reader.files()]
        return [*sources, *run.data.tokenizer.files(run)]

    def outputs(self, run: RunSpec) -> list[Path]:
        return manifest.paths(self.paths(run).store, self.name)

    def work(self, run: RunSpec, rank: Rank) -> Mapping[str, Any]:
        with contextlib.suppress(OSError):  # a missing file is reported below
            files = [file for file in self.inputs(run) if isinstance(file, Path)]
            run.data.engine.start(run, sum(file.stat().st_size for file in files))
        from easyllm.data.tokenize import tokenize

        return tokenize(run)
