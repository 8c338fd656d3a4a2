"""The uncompressed, memory-mapped copy of a store on a node's own disk.

Built once under a lock, whichever rank or run comes first; the others wait and map it.
Lies in a folder named by the fingerprint of what it copies::

    tokens.int32   trained.bool   offsets.int64   hashes.uint64   index.json   plans/

``plans/`` holds how the documents lie in rows, for each way in which runs have read them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from easyllm.data import manifest as manifests
from easyllm.data import store
from easyllm.data.identity import check_encoding
from easyllm.data.manifest import Manifest
from easyllm.data.shards import Bool, Int32, Int64, UInt64
from easyllm.errors import UserError
from easyllm.files import digest, exclusive, new_folder, read_json, write_json
from easyllm.paths import RunPaths, StorePaths
from easyllm.progress import progress
from easyllm.spec.run import RunSpec

VERSION = 1
"""Of the map's layout; part of its fingerprint."""


@dataclass(frozen=True)
class Cache:
    """All documents of a store, source by source."""

    tokens: Int32
    """[tokens], mapped."""
    trained: Bool | None
    """[tokens], mapped; None where every token is trained."""
    offsets: Int64
    """[documents + 1], mapped."""
    hashes: UInt64
    """[documents], mapped: of each document's content."""
    sources: dict[str, tuple[int, int]]
    """First document and the one after the last, by source."""
    fingerprint: str
    folder: Path
    bytes: int
    seconds: float
    """What building it took."""


def chosen(run: RunSpec) -> tuple[str, Manifest]:
    """The stage whose output training reads, and its manifest.

    The last data stage of the run or, where it has none, of the store. Raises UserError
    where that is absent or stems from tokens that are no longer there.
    """
    place = RunPaths(run).store
    stages = [stage for stage in manifests.STAGES if stage in run.stages]
    if not stages:
        stages = [s for s in manifests.STAGES if manifests.find(place, s)] or ["tokenize"]
    stage = stages[-1]
    manifest = manifests.require(place, stage)
    check_encoding(run, place, manifest)
    there = set(manifest["sources"])
    if run.data.sources and set(run.data.sources) != there:
        raise UserError(
            f"{place.root} holds the sources {', '.join(sorted(there))}, but data.sources names "
            f"{', '.join(sorted(run.data.sources))}; add tokenize to stages, or give another "
            "data.dir"
        )
    tokens = manifests.find(place, "tokenize")
    if tokens and manifest.get("tokens", manifests.identity(tokens)) != manifests.identity(tokens):
        raise UserError(
            f"{manifests.folder(place, stage)} was made from other tokens than are in "
            f"{place.tokens}; add shuffle and repartition to stages"
        )
    return stage, manifest


def open_cache(run: RunSpec) -> tuple[Cache, Manifest]:
    """The map of the run's store, built first where it is absent."""
    place = RunPaths(run).store
    stage, manifest = chosen(run)
    fingerprint = digest([VERSION, stage, manifests.identity(manifest)])
    root = Path(run.data.cache) if run.data.cache else place.root / "cache"
    folder = root / fingerprint
    built_once(folder, lambda aside: _build(place, stage, manifest, aside))
    return _open(folder), manifest


def built_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Have one process of this node fill ``folder``, unless it is there; the others wait.

    ``build`` gets an empty folder. What it leaves is there whole or not at all.
    """
    if folder.exists():
        return
    with exclusive(folder.parent / f"{folder.name}.lock"):
        if not folder.exists():
            manifests.sweep(folder)
            with new_folder(folder) as aside:
                build(aside)


def _build(place: StorePaths, stage: str, manifest: Manifest, folder: Path) -> None:
    began = time.perf_counter()
    masked = any(s["trained_tokens"] < s["tokens"] for s in manifest["sources"].values())
    documents = 0
    sources = {}
    end = np.int64(0)
    total = sum(source["tokens"] for source in manifest["sources"].values())
    with (
        (folder / "tokens.int32").open("wb") as tokens,
        (folder / "trained.bool").open("wb") as trained,
        (folder / "offsets.int64").open("wb") as offsets,
        (folder / "hashes.uint64").open("wb") as hashes,
        progress("mapping the token store", total, "tok") as bar,
    ):
        np.zeros(1, np.int64).tofile(offsets)
        for name in manifest["sources"]:
            first = documents
            for shard, hashed in store.load(place, stage, manifest, name):
                shard.ids.tofile(tokens)
                (shard.offsets[1:] + end).tofile(offsets)
                hashed.tofile(hashes)
                if masked:
                    mask = shard.trained
                    (np.ones(shard.tokens, np.bool_) if mask is None else mask).tofile(trained)
                end += shard.tokens
                documents += shard.documents
                bar.update(shard.tokens)
            sources[name] = (first, documents)
    if not masked:
        (folder / "trained.bool").unlink()
    index = {
        "sources": sources,
        "masked": masked,
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "seconds": round(time.perf_counter() - began, 3),
    }
    write_json(folder / "index.json", index)


def _open(folder: Path) -> Cache:
    index: dict[str, Any] = read_json(folder / "index.json")

    def mapped(name: str, dtype: Any) -> Any:
        # a plain array over the mapping: memmap's own indexing costs more than the reading
        return np.asarray(np.memmap(folder / name, dtype, "r"))

    return Cache(
        tokens=mapped("tokens.int32", np.int32),
        trained=mapped("trained.bool", np.bool_) if index["masked"] else None,
        offsets=mapped("offsets.int64", np.int64),
        hashes=mapped("hashes.uint64", np.uint64),
        sources={name: (first, end) for name, (first, end) in index["sources"].items()},
        fingerprint=folder.name,
        folder=folder,
        bytes=index["bytes"],
        seconds=index["seconds"],
    )
