"""Divides the shuffled files into partitions, each with a share of every data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easyllm.data.store import manifest
from easyllm.data.store.fingerprint import check_encoding
from easyllm.spec.run import RunSpec
from easyllm.stages.base import Rank, Stage


class Repartition(Stage):
    name = "repartition"
    reads = ("data.dir", "data.partitions")

    def require(self, run: RunSpec) -> None:
        if "shuffle" not in run.stages:
            store = self.paths(run).store
            check_encoding(run, store, manifest.require(store, "shuffle"))

    def inputs(self, run: RunSpec) -> list[Path]:
        return manifest.paths(self.paths(run).store, "shuffle")

    def outputs(self, run: RunSpec) -> list[Path]:
        return manifest.paths(self.paths(run).store, self.name)

    def work(self, run: RunSpec, rank: Rank) -> Mapping[str, Any]:
        from easyllm.data.repartition import repartition

        return repartition(run)
