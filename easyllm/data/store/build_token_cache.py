"""Builds the map: a store's documents laid end to end in plain files, by several processes.

In a folder named by the fingerprint of what it copies::

    tokens.int32   trained.bool   offsets.int64   hashes.uint64   index.json   plans/

The hashes of its blocks are beside each of them. ``plans/`` holds how the documents are placed in
rows, for each way in which runs have read them.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from easyllm.data.executors.pool import ordered_map
from easyllm.data.store import block_hashes, shards, token_files
from easyllm.data.store import manifest as manifests
from easyllm.data.store.manifest import Manifest
from easyllm.data.store.shards import Shard
from easyllm.errors import UserError
from easyllm.files import flush, full_disk, write_record
from easyllm.paths import StorePaths
from easyllm.progress import progress

VERSION = 4
"""Version of the cache's layout, the size of hashed blocks included; part of its fingerprint."""

TOKENS, TRAINED, OFFSETS, HASHES = "tokens.int32", "trained.bool", "offsets.int64", "hashes.uint64"
INDEX = "index.json"

WORTH_A_PROCESS = 20_000_000
"""Tokens: fewer are copied in the time in which a process starts."""


@dataclass(frozen=True)
class _Piece:
    """A file of the store and where its documents go."""

    path: str
    documents: int
    tokens: int
    checksum: int
    first_document: int
    first_token: int


def build(
    place: StorePaths, stage: str, manifest: Manifest, folder: Path, workers: int | None
) -> None:
    """Fill ``folder`` with the map of what ``stage`` made, checking every token.

    Raises UserError for a damaged file, or where the disk has too little room.
    """
    began = time.perf_counter()
    masked = {n: s["trained_tokens"] < s["tokens"] for n, s in manifest["sources"].items()}
    pieces: list[_Piece] = []
    sources: dict[str, Any] = {}
    documents = tokens = 0
    for name, source in manifest["sources"].items():
        first = documents
        for file in source["files"]:
            counts = file["documents"], file["tokens"]
            pieces.append(_Piece(file["path"], *counts, file["checksum"], documents, tokens))
            documents, tokens = documents + counts[0], tokens + counts[1]
        sources[name] = {"documents": (first, documents), "masked": masked[name]}
    sizes = {TOKENS: 4 * tokens, OFFSETS: 8 * (documents + 1), HASHES: 8 * documents}
    if any(masked.values()):
        sizes[TRAINED] = tokens
    check_room(folder.parent, sum(sizes.values()), "the map of the token store")
    for name, size in sizes.items():
        with (folder / name).open("wb") as file:
            file.truncate(size)
    copy = functools.partial(_copy, manifests.folder(place, stage), stage, folder, TRAINED in sizes)
    worth = max(1, min(tokens // WORTH_A_PROCESS, len(pieces)))
    with progress("map the token store, once", tokens, "tok") as bar:
        # the largest first, so that no process is left with one at the end
        in_order = sorted(pieces, key=lambda piece: -piece.tokens)
        for copied in ordered_map(copy, in_order, workers if worth > 1 else 1):
            bar.update(copied)
    for name in sizes:
        block_hashes.write(folder / name)
        flush(folder / name)
    index = {
        "sources": sources,
        "bytes": sum(sizes.values()),
        "seconds": round(time.perf_counter() - began, 3),
    }
    write_record(folder / INDEX, index)


def _copy(store_folder: Path, stage: str, folder: Path, masked: bool, piece: _Piece) -> int:
    """Write a file's documents to their places; returns its tokens."""
    path = store_folder / piece.path
    found = [0, 0, 0]
    document, token = piece.first_document, piece.first_token
    names = (TOKENS, OFFSETS, HASHES, *([TRAINED] if masked else []))
    with contextlib.ExitStack() as stack:
        files = {n: stack.enter_context((folder / n).open("r+b", buffering=0)) for n in names}

        def put(name: str, place: int, values: npt.NDArray[Any]) -> None:
            files[name].seek(place * values.itemsize)
            values.tofile(files[name])

        try:
            for block in _blocks(path):
                hashes = shards.hashes(block)
                counts = block.documents, block.tokens, shards.checksum(hashes)
                found = [a + b for a, b in zip(found, counts, strict=True)]
                if found[0] > piece.documents or found[1] > piece.tokens:
                    break  # the place after it is another file's
                put(TOKENS, token, block.ids)
                put(OFFSETS, document + 1, block.offsets[1:] + token)
                put(HASHES, document, hashes)
                if masked:
                    trained = block.trained
                    put(
                        TRAINED,
                        token,
                        np.ones(block.tokens, np.bool_) if trained is None else trained,
                    )
                document, token = document + block.documents, token + block.tokens
            if found[:2] != [piece.documents, piece.tokens]:
                raise shards.Damaged(
                    f"holds {found[0]} documents of {found[1]} tokens, not "
                    f"{piece.documents} of {piece.tokens}"
                )
            if shards.add_checksums(found[2]) != piece.checksum:
                raise shards.Damaged("its tokens are not those that were written")
        except shards.Damaged as damage:
            raise token_files.damaged(path, damage, stage) from None
    return piece.tokens


def _blocks(path: Path) -> Iterator[Shard]:
    """The documents of a file, a few at a time, however large it is. Raises Damaged."""
    groups, _ = shards.groups(path)
    return itertools.chain.from_iterable(map(shards.read_group, groups))


def check_room(root: Path, needed: int, what: str) -> None:
    """Raises UserError where the disk of ``root``, the folder ``data.cache``, has less than
    ``needed`` bytes free."""
    free = shutil.disk_usage(root).free
    if needed > free:
        raise UserError(
            f"data.cache={root}: {what} takes {needed:,} bytes, and its disk has "
            f"{free:,} free; make room, or give data.cache=<a folder on a larger disk>"
        )


@contextlib.contextmanager
def room_said(root: Path) -> Iterator[None]:
    """Raise UserError also where others fill the disk meanwhile."""
    try:
        yield
    except OSError as error:
        if full_disk(error) is None:
            raise
        raise UserError(
            f"data.cache={root}: its disk is full; make room, or give "
            "data.cache=<a folder on a larger disk>"
        ) from None
