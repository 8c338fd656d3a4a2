"""Puts the documents of each data set into a random order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easyllm.data.store import manifest
from easyllm.data.store.fingerprint import check_encoding
from easyllm.spec.run import RunSpec
from easyllm.stages.base import Rank, Stage


class Shuffle(Stage):
    name = "shuffle"
    reads = ("data.dir", "data.partitions", "data.compression", "seed")

    def require(self, run: RunSpec) -> None:
        if "tokenize" not in run.stages:
            store = self.paths(run).store
            check_encoding(run, store, manifest.require(store, "tokenize"))

    def inputs(self, run: RunSpec) -> list[Path]:
        return manifest.paths(self.paths(run).store, "tokenize")

    def outputs(self, run: RunSpec) -> list[Path]:
        return manifest.paths(self.paths(run).store, self.name)

    def work(self, run: RunSpec, rank: Rank) -> Mapping[str, Any]:
        from easyllm.data.shuffle.shuffle import shuffle

        return shuffle(run)
