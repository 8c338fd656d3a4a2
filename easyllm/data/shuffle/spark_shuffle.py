"""The shuffle by Spark's own exchange and sort.

It makes two passes over the store. The first checks what it reads, draws every document's key as
the local engine does, and keeps keys and lengths, which give the cuts between files and row
groups. The second sends each document to the partition of its file, where Spark sorts the
documents by key, on the disk where they do not fit memory, and a task writes the file. So the
files are the same as the local engine's, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from easyllm.data.executors.spark_task import noted
from easyllm.data.random import generator
from easyllm.data.shuffle import external_sort
from easyllm.data.shuffle.external_sort import Index, Sorted, Unit
from easyllm.data.shuffle.job import MOST_RUNS, Job, Output, batches, cut, sorted_runs
from easyllm.data.store import shards, token_files
from easyllm.data.store.shards import Int64, Shard, UInt64

if TYPE_CHECKING:
    from easyllm.data.executors.spark import SparkPool

DOCUMENTS = "output int, key long, place long, ids binary, trained binary"
"""What is exchanged. ``output`` is the file's number among all sources'; ``key`` is shifted to
the signed numbers that Spark has, and ``place`` in the source decides between equal keys."""

WRITTEN = "output int, entry string"

ROWS = 1 << 40
"""Documents of a row group at most."""


@dataclass(frozen=True)
class ReadTask:
    """A section of a source, to be read by a task."""

    source: str
    masked: bool
    units: list[Unit]
    first: int
    """Number of the first unit in the source."""
    output: int
    """Number of the source's first file."""
    starts: UInt64
    """The lowest key of each of the source's files."""


@dataclass(frozen=True)
class File:
    """A file to be written."""

    path: str
    masked: bool
    groups: Int64
    """Documents of each row group."""


def shuffle(pool: SparkPool, job: Job) -> dict[str, list[dict[str, Any]]]:
    """Write the files of a shuffle; returns the manifest's entries by source."""
    total = sum(source["tokens"] for source in job.tokens["sources"].values())
    capacity = max(shards.BLOCK_TOKENS, total // MOST_RUNS)
    draw = partial(_draw, job.run.seed, job.scratch)
    runs = sorted_runs(pool, job, draw, capacity, None)
    outputs = cut(job, runs)
    parts = _parts(job, runs, outputs, capacity)
    files = [
        File(output.path, output.masked, np.diff(output.bounds.sum(axis=1))) for output in outputs
    ]
    note, compression = pool.note, job.run.data.compression
    with pool.as_user_errors():
        rows = (
            pool.session.range(0, len(parts), 1, len(parts))
            .mapInArrow(_batched(partial(_read, job.run.seed, parts), note), DOCUMENTS)
            .repartitionById(len(files), "output")
            .sortWithinPartitions("key", "place")
            .mapInArrow(_batched(partial(_write, job.folder, compression, files), note), WRITTEN)
            .collect()
        )
    made: dict[str, list[dict[str, Any]]] = {output.source: [] for output in outputs}
    entries = {row.output: json.loads(row.entry) for row in rows}
    for number, output in enumerate(outputs):
        made[output.source].append(entries[number])
        job.bar.update(entries[number]["tokens"])
    return made


def _batched(
    function: Callable[[Iterator[Any]], Iterator[Any]], note: Path
) -> Callable[[Iterator[Any]], Iterator[Any]]:
    """``function`` of record batches as Spark takes it."""

    def work(batches: Iterator[Any]) -> Iterator[Any]:
        with noted(note):
            yield from function(batches)

    return work


def _parts(
    job: Job, runs: dict[str, list[Path]], outputs: list[Output], capacity: int
) -> list[ReadTask]:
    parts = []
    first_output = 0
    for source in job.sources:
        own = [output for output in outputs if output.source == source.name]
        starts = Index(runs[source.name]).keys(np.stack([output.bounds[0] for output in own]))
        first = 0
        for units in batches(source.units, capacity):
            parts.append(ReadTask(source.name, source.masked, units, first, first_output, starts))
            first += len(units)
        first_output += len(own)
    return parts


def _documents(seed: int, source: str, unit: Unit) -> Iterator[tuple[UInt64, Shard]]:
    """The documents of a row group with their keys. Raises UserError for a damaged file."""
    draw = generator(seed, "shuffle", source, unit.file, unit.group.number)
    try:
        for shard in shards.read_group(unit.group):
            yield draw.integers(1 << 64, size=shard.documents, dtype=np.uint64), shard
    except shards.Damaged as damage:
        raise token_files.damaged(unit.group.path, damage, "tokenize") from None


def _draw(seed: int, scratch: Path, job: tuple[int, str, bool, list[Unit]]) -> Sorted:
    """Keep keys and lengths of some row groups as a run without its tokens."""
    number, source, _, units = job
    counts: dict[int, tuple[int, int]] = {}
    keys, lengths = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for unit in units:
        for drawn, shard in _documents(seed, source, unit):
            documents, tokens = counts.get(unit.file, (0, 0))
            counts[unit.file] = documents + shard.documents, tokens + shard.tokens
            keys.append(drawn)
            lengths.append(shard.lengths)
    run = scratch / str(number)
    external_sort.write_index(run, np.concatenate(keys), np.concatenate(lengths))
    return Sorted([run], counts)


def _read(seed: int, parts: list[ReadTask], rows: Iterator[Any]) -> Iterator[Any]:
    """The documents of the parts whose numbers are in ``rows``."""
    for row in rows:
        for number in row.column(0).to_pylist():
            part = parts[number]
            for place, unit in enumerate(part.units, part.first):
                place *= ROWS
                for keys, shard in _documents(seed, part.source, unit):
                    yield from _exchanged(part, place, keys, shard)
                    place += shard.documents


def _exchanged(part: ReadTask, place: int, keys: UInt64, shard: Shard) -> Iterator[Any]:
    """Documents as rows to be exchanged; few at a time, as they are held at both ends."""
    outputs = part.output + np.searchsorted(part.starts, keys, "right") - 1
    signed = (keys ^ np.uint64(1 << 63)).view(np.int64)
    first = 0
    for block in shard.blocks(shards.BLOCK_TOKENS // 4):
        until = first + block.documents
        trained: Any = pa.nulls(block.documents, pa.binary())
        if part.masked:
            mask = np.ones(block.tokens, np.bool_) if block.trained is None else block.trained
            trained = _binary(mask, block.offsets)
        yield pa.record_batch(
            [
                pa.array(outputs[first:until].astype(np.int32)),
                pa.array(signed[first:until]),
                pa.array(np.arange(place + first, place + until)),
                _binary(block.ids, block.offsets),
                trained,
            ],
            names=["output", "key", "place", "ids", "trained"],
        )
        first = until


def _binary(values: Any, offsets: Int64) -> Any:
    """Runs of values as byte strings."""
    ends = (offsets * values.itemsize).astype(np.int32)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(np.ascontiguousarray(values))]
    return pa.Array.from_buffers(pa.binary(), len(offsets) - 1, buffers)


def _write(folder: Path, compression: str, files: list[File], rows: Iterator[Any]) -> Iterator[Any]:
    """Write a file of its sorted documents."""
    first = next(rows, None)
    if first is None:
        return
    number = first.column("output")[0].as_py()
    file = files[number]
    groups = _groups(_shards(first, rows, file.masked), file.groups)
    entry = token_files.save_groups(folder / file.path, file.path, groups, file.masked, compression)
    yield pa.record_batch(
        [pa.array([number], pa.int32()), pa.array([json.dumps(entry)])], names=["output", "entry"]
    )


def _shards(first: Any, rest: Iterator[Any], masked: bool) -> Iterator[Shard]:
    batch = first
    while batch is not None:
        ids, offsets = _values(batch.column("ids"), np.int32)
        trained = _values(batch.column("trained"), np.bool_)[0] if masked else None
        yield Shard(ids, offsets, trained)
        batch = next(rest, None)


def _values(column: Any, dtype: Any) -> tuple[Any, Int64]:
    """Byte strings as runs of values laid end to end, and their offsets."""
    _, ends, content = column.buffers()
    size = np.dtype(dtype).itemsize
    offsets = np.frombuffer(ends, np.int32)[column.offset :][: len(column) + 1].astype(np.int64)
    values = np.frombuffer(content, np.uint8)[offsets[0] : offsets[-1]].view(dtype)
    return values, (offsets - offsets[0]) // size


def _groups(found: Iterator[Shard], sizes: Int64) -> Iterator[Shard]:
    """The documents in row groups of these sizes, empty ones left out."""
    left = iter(sizes[sizes > 0].tolist())
    missing = next(left, 0)
    pieces: list[Shard] = []
    for shard in found:
        first = 0
        while first < shard.documents:
            if not missing:
                raise RuntimeError("the exchange gave a file more documents than it has")
            until = min(shard.documents, first + missing)
            pieces.append(_slice(shard, first, until))
            missing -= until - first
            first = until
            if not missing:
                yield shards.join(pieces)
                pieces, missing = [], next(left, 0)
    if missing:
        raise RuntimeError(f"the exchange lost {missing} documents of a row group")


def _slice(shard: Shard, first: int, until: int) -> Shard:
    start, end = shard.offsets[first], shard.offsets[until]
    return Shard(
        shard.ids[start:end],
        shard.offsets[first : until + 1] - start,
        None if shard.trained is None else shard.trained[start:end],
    )
