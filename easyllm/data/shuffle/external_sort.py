"""Documents on disk, sorted by random keys: the two halves of a shuffle out of core.

Each document draws a 64-bit key from (seed, source, file, row group). Its place in the shuffled
order is its key's rank, so the order is uniform and does not depend on how many processes draw
keys or on how much each holds at once. The first pass sorts as many documents as fit memory
into a *run*; the second reads from every run the documents between two keys, which are
neighbours in the result.

A run is a folder::

    keys.uint64   offsets.int64   tokens.int32   trained.bool

with ``tokens.uint16`` where no id needs more, which halves what is written and read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from easyllm.data.random import generator
from easyllm.data.store import shards, token_files
from easyllm.data.store.shards import Bool, Group, Int64, Shard, UInt64


@dataclass(frozen=True)
class Unit:
    """A row group to be shuffled."""

    file: int
    """Number of its file among its source's."""
    group: Group


@dataclass(frozen=True)
class Sorted:
    """The result of sorting some row groups."""

    runs: list[Path]
    counts: dict[int, tuple[int, int]]
    """Documents and tokens read, by file."""


def sort(
    units: Sequence[Unit], masked: bool, capacity: int, seed: int, source: str, folder: Path
) -> Sorted:
    """Write row groups of one source as runs of at most ``capacity`` tokens below ``folder``.

    A document, or what is read at once, may be longer than that. Raises UserError for a
    damaged file.
    """
    runs: list[Path] = []
    counts: dict[int, tuple[int, int]] = {}
    held: list[tuple[UInt64, Shard]] = []
    for unit in units:
        draw = generator(seed, "shuffle", source, unit.file, unit.group.number)
        for shard in _read_group(unit.group):
            documents, tokens = counts.get(unit.file, (0, 0))
            counts[unit.file] = documents + shard.documents, tokens + shard.tokens
            if held and sum(s.tokens for _, s in held) + shard.tokens > capacity:
                runs.append(_write_run(folder / str(len(runs)), held, masked))
            keys = draw.integers(1 << 64, size=shard.documents, dtype=np.uint64)
            held.append((keys, _narrow(shard)))
    if held:
        runs.append(_write_run(folder / str(len(runs)), held, masked))
    return Sorted(runs, counts)


def _read_group(group: Group) -> Iterator[Shard]:
    try:
        yield from shards.read_group(group)
    except shards.Damaged as damage:
        raise token_files.damaged(group.path, damage, "tokenize") from None


def _narrow(shard: Shard) -> Shard:
    """The same documents, with ids of two bytes where all of them fit."""
    if shard.tokens and int(shard.ids.max()) >= 1 << 16:
        return shard
    return replace(shard, ids=shard.ids.astype(np.uint16))


def _write_run(run: Path, held: list[tuple[UInt64, Shard]], masked: bool) -> Path:
    """Write the held documents in the order of their keys, and release them."""
    keys = np.concatenate([drawn for drawn, _ in held])
    whole = held[0][1] if len(held) == 1 else shards.join([shard for _, shard in held])
    held.clear()  # joining made a copy
    order, ends = write_index(run, keys, whole.lengths)
    tokens, trained = run / f"tokens.{whole.ids.dtype}", run / "trained.bool"
    with tokens.open("wb") as ids, trained.open("wb") as mask:
        first = 0
        while first < len(order):  # little at a time: ``take`` makes a copy
            until = int(np.searchsorted(ends, ends[first] + shards.BLOCK_TOKENS, "right")) - 1
            part = whole.take(order[first : max(until, first + 1)])
            part.ids.tofile(ids)
            if masked:
                all_trained = np.ones(part.tokens, np.bool_)
                (all_trained if part.trained is None else part.trained).tofile(mask)
            first += part.documents
    return run


def write_index(run: Path, keys: UInt64, lengths: Int64) -> tuple[Int64, Int64]:
    """Write what ``Index`` needs of a run; returns the documents' order and their ends in it."""
    run.mkdir(parents=True)
    order = np.argsort(keys, kind="stable")
    keys[order].tofile(run / "keys.uint64")
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[order])])
    ends.tofile(run / "offsets.int64")
    return order, ends


class Index:
    """Where the documents with keys below a bound end in each run."""

    def __init__(self, runs: Sequence[Path]):
        self._keys = [np.memmap(run / "keys.uint64", np.uint64, "r") for run in runs]
        self._offsets = [np.memmap(run / "offsets.int64", np.int64, "r") for run in runs]
        self.start = np.zeros(len(runs), np.int64)
        self.end = np.array([len(keys) for keys in self._keys], np.int64)
        """The bounds before the first document and after the last, [runs]."""

    def at_tokens(self, targets: Int64) -> Int64:
        """The lowest bounds below which there are at least so many tokens, [targets, runs]."""
        return self._find(targets, tokens=True)

    def at_documents(self, targets: Int64) -> Int64:
        """Bounds below which there are so many documents, [targets, runs]."""
        return self._find(targets, tokens=False)

    def tokens(self, bounds: Int64) -> Int64:
        """Tokens below each of ``bounds`` [n, runs], [n]."""
        total = np.zeros(len(bounds), np.int64)
        for ends, places in zip(self._offsets, bounds.T, strict=True):
            total += ends[places]
        return total

    def keys(self, bounds: Int64) -> UInt64:
        """The lowest key that is not below each of ``bounds`` [n, runs], [n]; the highest
        64-bit number where no document is left."""
        lowest = np.full(len(bounds), np.iinfo(np.uint64).max, np.uint64)
        for keys, places in zip(self._keys, bounds.T, strict=True):
            there = places < len(keys)
            lowest[there] = np.minimum(lowest[there], keys[places[there]])
        return lowest

    def _find(self, targets: Int64, tokens: bool) -> Int64:
        low = np.zeros(len(targets), np.uint64)
        high = np.full(len(targets), np.iinfo(np.uint64).max, np.uint64)
        for _ in range(64):  # halves the keys that remain, for all targets at once
            middle = low + (high - low) // np.uint64(2)
            below = self._below(middle)
            enough = (self.tokens(below) if tokens else below.sum(axis=1)) >= targets
            high = np.where(enough, middle, high)
            low = np.where(enough, low, np.minimum(middle, high - np.uint64(1)) + np.uint64(1))
        return self._below(high)

    def _below(self, keys: UInt64) -> Int64:
        places = [np.searchsorted(run, keys, "left") for run in self._keys]
        return np.stack(places, axis=1).astype(np.int64)


def merge(runs: Sequence[Path], bounds: Int64, masked: bool, capacity: int) -> Iterator[Shard]:
    """The documents between each two of ``bounds`` [n + 1, runs], in the order of their keys.

    Reads several of the n stretches at once as far as ``capacity`` tokens hold them; yields
    those that hold a document.
    """
    lengths = np.diff(Index(runs).tokens(bounds))
    first = 0
    while first < len(lengths):
        ends = np.cumsum(lengths[first:])
        until = first + max(1, int(np.searchsorted(ends, capacity, "right")))
        keys, whole = _read(runs, bounds[first], bounds[until], masked)
        order = np.argsort(keys, kind="stable")
        counts = (bounds[first + 1 : until + 1] - bounds[first]).sum(axis=1)
        for part in np.split(order, counts[:-1]):
            if len(part):
                taken = whole.take(part)
                yield replace(taken, ids=taken.ids.astype(np.int32, copy=False))
        first = until


def _read(runs: Iterable[Path], start: Int64, end: Int64, masked: bool) -> tuple[UInt64, Shard]:
    """Keys and documents from ``start`` to ``end`` [runs] of each run, one after another."""
    pieces = []
    keys, lengths = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for run, first, until in zip(runs, start.tolist(), end.tolist(), strict=True):
        if first < until:
            count = until - first
            keys.append(np.fromfile(run / "keys.uint64", np.uint64, count, offset=8 * first))
            ends = np.fromfile(run / "offsets.int64", np.int64, count + 1, offset=8 * first)
            lengths.append(np.diff(ends))
            pieces.append((run, _width(run), int(ends[0]), int(ends[-1] - ends[0])))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))])
    narrow = all(width == np.uint16 for _, width, _, _ in pieces)
    ids: Any = np.empty(offsets[-1], np.uint16 if narrow else np.int32)
    trained: Bool | None = np.empty(offsets[-1], np.bool_) if masked else None
    filled = 0
    for run, width, first, count in pieces:
        part = slice(filled, filled + count)
        if width == ids.dtype:
            _fill(ids[part], run / f"tokens.{width}", first)
        else:
            values = np.empty(count, width)
            _fill(values, run / f"tokens.{width}", first)
            ids[part] = values
        if trained is not None:
            _fill(trained[part], run / "trained.bool", first)
        filled += count
    return np.concatenate(keys), Shard(ids, offsets, trained)


def _width(run: Path) -> np.dtype[Any]:
    """The type of a run's ids."""
    return np.dtype(np.uint16 if (run / "tokens.uint16").exists() else np.int32)


def _fill(part: npt.NDArray[Any], file: Path, first: int) -> None:
    """Read ``part`` from the file's values from ``first`` on."""
    with file.open("rb", buffering=0) as handle:
        handle.seek(first * part.itemsize)
        view = part.view(np.uint8).data
        done = 0
        while done < len(view):
            read = handle.readinto(view[done:])
            if not read:
                raise OSError(f"{file} is cut short")
            done += read
