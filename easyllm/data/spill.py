"""Documents on disk, sorted by random keys: the two halves of a shuffle out of core.

Each document draws a 64-bit key from (seed, source, file, row group). Its place in the shuffled
order is its key's rank, so the order is uniform and nothing else can change it: neither how
many processes draw keys, nor how much each holds at once. The first pass sorts as many
documents as fit memory into a *run*; the second reads from every run the documents
between two keys, which are neighbours in the result.

A run is a folder::

    keys.uint64   offsets.int64   tokens.int32   trained.bool
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from easyllm.data import shards, store
from easyllm.data.random import generator
from easyllm.data.shards import Bool, Group, Int32, Int64, Shard, UInt64


@dataclass(frozen=True)
class Unit:
    """A row group to be shuffled."""

    file: int
    """Number of its file among its source's."""
    group: Group


@dataclass(frozen=True)
class Sorted:
    """What sorting some row groups gave."""

    runs: list[Path]
    checksums: dict[int, int]
    """Of the documents read, by file."""
    documents: dict[int, int]


def sort(
    units: Sequence[Unit], masked: bool, capacity: int, seed: int, source: str, folder: Path
) -> Sorted:
    """Write row groups of one source as runs of at most ``capacity`` tokens below ``folder``.

    A document, or what is read at once, may be longer than that. Raises UserError for a
    damaged file.
    """
    runs: list[Path] = []
    checksums: dict[int, int] = {}
    documents: dict[int, int] = {}
    buffer = _Buffer(min(capacity, sum(unit.group.tokens for unit in units)), masked)
    for unit in units:
        draw = generator(seed, "shuffle", source, unit.file, unit.group.number)
        for shard in _read_group(unit.group):
            found = shards.checksum(shards.hashes(shard))
            checksums[unit.file] = shards.add_checksums(checksums.get(unit.file, 0), found)
            documents[unit.file] = documents.get(unit.file, 0) + shard.documents
            if not buffer.fits(shard):
                runs.append(buffer.empty(folder / str(len(runs))))
            keys = draw.integers(1 << 64, size=shard.documents, dtype=np.uint64)
            buffer.add(keys, shard)
    if buffer.tokens or buffer.lengths:
        runs.append(buffer.empty(folder / str(len(runs))))
    return Sorted(runs, checksums, documents)


def _read_group(group: Group) -> Iterator[Shard]:
    try:
        yield from shards.read_group(group)
    except shards.Damaged as damage:
        raise store.damaged(group.path, damage, "tokenize") from None


class _Buffer:
    """Documents and their keys, until they are written in the order of the keys."""

    def __init__(self, capacity: int, masked: bool):
        self._ids = np.empty(capacity, np.int32)
        self._trained = np.empty(capacity, np.bool_) if masked else None
        self._clear()

    def _clear(self) -> None:
        self.tokens = 0
        self.lengths: list[Int64] = []
        self._keys: list[UInt64] = []

    def fits(self, shard: Shard) -> bool:
        return not self.lengths or self.tokens + shard.tokens <= len(self._ids)

    def add(self, keys: UInt64, shard: Shard) -> None:
        end = self.tokens + shard.tokens
        if end > len(self._ids):  # alone, and longer than the capacity
            self._ids = np.empty(end, np.int32)
            self._trained = None if self._trained is None else np.empty(end, np.bool_)
        self._ids[self.tokens : end] = shard.ids
        if self._trained is not None:
            self._trained[self.tokens : end] = True if shard.trained is None else shard.trained
        self.tokens = end
        self.lengths.append(shard.lengths)
        self._keys.append(keys)

    def empty(self, run: Path) -> Path:
        keys = np.concatenate(self._keys)
        lengths = np.concatenate(self.lengths)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        trained = None if self._trained is None else self._trained[: self.tokens]
        whole = Shard(self._ids[: self.tokens], offsets, trained)
        order, ends = write_index(run, keys, lengths)
        with (run / "tokens.int32").open("wb") as ids, (run / "trained.bool").open("wb") as mask:
            first = 0
            while first < len(order):  # little at a time: what is taken is a copy
                until = int(np.searchsorted(ends, ends[first] + shards.BLOCK_TOKENS, "right")) - 1
                part = whole.take(order[first : max(until, first + 1)])
                part.ids.tofile(ids)
                if part.trained is not None:
                    part.trained.tofile(mask)
                first += part.documents
        self._clear()
        return run


def write_index(run: Path, keys: UInt64, lengths: Int64) -> tuple[Int64, Int64]:
    """Write what ``Index`` needs of a run; the documents' order and their ends in it."""
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
        """Bounds below which lie at least so many tokens, and no document more, [targets, runs]."""
        return self._find(targets, tokens=True)

    def at_documents(self, targets: Int64) -> Int64:
        """Bounds below which lie so many documents, [targets, runs]."""
        return self._find(targets, tokens=False)

    def tokens(self, bounds: Int64) -> Int64:
        """Tokens below each of ``bounds`` [n, runs], [n]."""
        total = np.zeros(len(bounds), np.int64)
        for ends, places in zip(self._offsets, bounds.T, strict=True):
            total += ends[places]
        return total

    def keys(self, bounds: Int64) -> UInt64:
        """The lowest key that is not below each of ``bounds`` [n, runs], [n]; the highest
        number there is where no document is left."""
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
                yield whole.take(part)
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
            pieces.append((run, int(ends[0]), int(ends[-1] - ends[0])))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))])
    ids: Int32 = np.empty(offsets[-1], np.int32)
    trained: Bool | None = np.empty(offsets[-1], np.bool_) if masked else None
    filled = 0
    for run, first, count in pieces:
        _fill(ids[filled : filled + count], run / "tokens.int32", first)
        if trained is not None:
            _fill(trained[filled : filled + count], run / "trained.bool", first)
        filled += count
    return np.concatenate(keys), Shard(ids, offsets, trained)


def _fill(part: Int32 | Bool, file: Path, first: int) -> None:
    """Read ``part`` from the file's values from ``first`` on."""
    with file.open("rb", buffering=0) as handle:
        handle.seek(first * part.itemsize)
        view = part.view(np.uint8).data
        done = 0
        while done < len(view):
            read = handle.readinto(view[done:])
            if not read:
                raise OSError(f"{file} is cut")
            done += read
