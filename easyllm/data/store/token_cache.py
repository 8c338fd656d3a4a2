"""The uncompressed copy of a store on a node's own disk, which all its processes read.

The rank or run that comes first builds it once under a lock; the others wait and read it.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from easyllm.data.store import build_token_cache
from easyllm.data.store import manifest as manifests
from easyllm.data.store.block_hashes import Blocks, damaged
from easyllm.data.store.fingerprint import check_encoding
from easyllm.data.store.manifest import Manifest
from easyllm.data.store.shards import Int64, UInt64
from easyllm.errors import UserError
from easyllm.files import atomic_dir, file_lock, read_record, stable_hash
from easyllm.paths import RunPaths
from easyllm.spec.run import RunSpec


class Column:
    """Numbers of one type in a file, read by their place.

    The file is read, not mapped: the one copy that all processes of the node share is then the
    system's page cache, whatever each has read, while mapped pages count as a process's own
    until another process reads them too. And a disk that fails is an error, not a signal.
    """

    def __init__(self, file: Path, dtype: np.dtype[Any]):
        self.file, self.dtype = file, dtype
        self._blocks = Blocks(file)
        self._descriptor, self._size = os.open(file, os.O_RDONLY), dtype.itemsize
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, place: int, into: npt.NDArray[Any]) -> None:
        """Fill an array of this type with what begins at ``place``. Raises UserError where that
        is not what was written."""
        at = place * self._size
        if not self._blocks.compared(at, at + into.nbytes):
            self._blocks.read(self._descriptor, at, into.view(np.uint8).data)
            return
        got = os.preadv(self._descriptor, [into.data], at)
        while got < into.nbytes:  # 2 GiB at once at most
            more = os.preadv(self._descriptor, [into.view(np.uint8)[got:].data], at + got)
            if not more:
                raise damaged(self.file)
            got += more

    def __len__(self) -> int:
        return os.fstat(self._descriptor).st_size // self._size

    def __getitem__(self, places: slice) -> npt.NDArray[Any]:
        """A copy of the numbers at these places, one after another."""
        start, stop, step = places.indices(len(self))
        assert step == 1
        found = np.empty(max(stop - start, 0), self.dtype)
        self.read(start, found)
        return found


@dataclass(frozen=True)
class Cache:
    """All documents of a store, source by source."""

    tokens: Column
    """[tokens], int32."""
    trained: Column | None
    """[tokens], bool; None where every token is trained."""
    offsets: Int64
    """[documents + 1], mapped."""
    hashes: UInt64
    """[documents], mapped: of each document's content."""
    sources: dict[str, tuple[int, int]]
    """First document and the one after the last, by source."""
    conversations: set[str]
    """Sources some of whose tokens are not trained."""
    fingerprint: str
    folder: Path
    bytes: int
    seconds: float
    """Time that building it took."""

    @property
    def root(self) -> Path:
        """The folder ``data.cache``."""
        return self.folder.parent


def chosen(run: RunSpec) -> tuple[str, Manifest]:
    """The stage whose output training reads, and its manifest.

    The last data stage of the run or, where it has none, of the store. Raises UserError
    where that is absent or was made from tokens that are no longer there.
    """
    place = RunPaths(run).store
    stage = manifests.last_stage(run, place) or "tokenize"
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
    if manifests.tokenizer_identity(place.tokenizer) != manifest["tokenizer"]:
        raise UserError(
            f"{place.tokenizer} is not the tokenizer with which {manifests.folder(place, stage)} "
            "was made: a file there is damaged, gone or new; add tokenize to stages, which makes "
            "both again"
        )
    return stage, manifest


def open_cache(run: RunSpec) -> tuple[Cache, Manifest]:
    """The map of the run's store, built first where it is absent.

    Raises UserError where the store is absent or damaged, or its map does not fit on the disk.
    """
    place = RunPaths(run).store
    stage, manifest = chosen(run)
    fingerprint = stable_hash([build_token_cache.VERSION, stage, manifests.identity(manifest)])
    root = Path(run.data.cache) if run.data.cache else place.root / "cache"
    folder = root / fingerprint

    def build(temporary: Path) -> None:
        build_token_cache.build(place, stage, manifest, temporary, run.data.workers)

    built_once(root, folder, build)
    return _open(folder), manifest


def built_once(root: Path, folder: Path, build: Callable[[Path], None]) -> None:
    """Have one process of this node fill ``folder``, unless it is there; the others wait.

    ``build`` gets an empty folder below ``root``, which is ``data.cache``. What it writes is
    there whole or not at all. Raises UserError where the disk has no room left.
    """
    if folder.exists():
        return
    with build_token_cache.room_said(root), file_lock(folder.parent / f"{folder.name}.lock"):
        if not folder.exists():
            manifests.sweep(folder)
            with atomic_dir(folder) as temporary:
                build(temporary)


def _open(folder: Path) -> Cache:
    try:
        index = read_record(folder / build_token_cache.INDEX)
    except (OSError, ValueError):
        raise damaged(folder / build_token_cache.INDEX) from None

    def mapped(name: str, dtype: Any) -> Any:
        Blocks(folder / name).check_all()
        # a plain array over the mapping: memmap's own indexing costs more than the reading
        return np.asarray(np.memmap(folder / name, dtype, "r"))

    masked = any(source["masked"] for source in index["sources"].values())
    return Cache(
        tokens=Column(folder / build_token_cache.TOKENS, np.dtype(np.int32)),
        trained=Column(folder / build_token_cache.TRAINED, np.dtype(np.bool_)) if masked else None,
        offsets=mapped(build_token_cache.OFFSETS, np.int64),
        hashes=mapped(build_token_cache.HASHES, np.uint64),
        sources={name: tuple(source["documents"]) for name, source in index["sources"].items()},
        conversations={name for name, source in index["sources"].items() if source["masked"]},
        fingerprint=folder.name,
        folder=folder,
        bytes=index["bytes"],
        seconds=index["seconds"],
    )
