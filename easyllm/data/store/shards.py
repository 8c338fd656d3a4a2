"""Parquet files of token ids: one row a document, unpadded.

Columns are ``input_ids`` and, for conversations, ``labels`` (-100 where untrained), both
list<int32>. In memory a shard is flat arrays with offsets, never lists of lists.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from easyllm.data.store.arrays import to_arrow, to_numpy

UNTRAINED = -100
"""The label of a token that is not trained, as in transformers."""

BLOCK_TOKENS = 1 << 22
"""Tokens of a parquet row group, and of what is computed at once: a few arrays of 32 MB."""

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]


class Damaged(Exception):
    """A file that is not what was written."""


@dataclass(frozen=True)
class Shard:
    """Documents: the tokens of document i are ``ids[offsets[i]:offsets[i + 1]]``."""

    ids: Int32
    offsets: Int64
    """[documents + 1], from 0."""
    trained: Bool | None = None
    """[tokens]; None where every token is trained."""

    @property
    def documents(self) -> int:
        return len(self.offsets) - 1

    @property
    def tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def trained_tokens(self) -> int:
        return self.tokens if self.trained is None else int(np.count_nonzero(self.trained))

    @property
    def lengths(self) -> Int64:
        return np.diff(self.offsets)

    def take(self, documents: Int64) -> Shard:
        """The documents at these places, in this order."""
        ids, offsets = _take(self.ids, self.offsets, documents)
        trained = None
        if self.trained is not None:
            trained = _take(self.trained, self.offsets, documents)[0]
        return Shard(ids, offsets, trained)

    def blocks(self, tokens: int | None = None) -> Iterator[Shard]:
        """The documents in order, about ``tokens`` (by default ``BLOCK_TOKENS``) at a time."""
        tokens = tokens or BLOCK_TOKENS
        first = 0
        while first < self.documents:
            until = int(np.searchsorted(self.offsets, self.offsets[first] + tokens, "right"))
            until = min(max(until - 1, first + 1), self.documents)
            start, end = self.offsets[first], self.offsets[until]
            yield Shard(
                self.ids[start:end],
                self.offsets[first : until + 1] - start,
                None if self.trained is None else self.trained[start:end],
            )
            first = until


def gather(starts: Int64, lengths: Int64) -> tuple[Int64, Int64]:
    """Places of the items of runs ``starts[i]:starts[i] + lengths[i]`` laid end to end, and
    the offsets [runs + 1] of the runs in the result."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    at = np.repeat(starts - offsets[:-1], lengths)
    at += np.arange(offsets[-1])
    return at, offsets


def join(shards: list[Shard]) -> Shard:
    """The documents of all shards, in order."""
    lengths = np.concatenate([shard.lengths for shard in shards])
    trained = None
    if any(shard.trained is not None for shard in shards):
        trained = np.concatenate(
            [np.ones(s.tokens, np.bool_) if s.trained is None else s.trained for s in shards]
        )
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return Shard(np.concatenate([shard.ids for shard in shards]), offsets, trained)


def _take(values: Any, offsets: Int64, runs: Int64) -> tuple[Any, Int64]:
    """Runs ``values[offsets[i]:offsets[i + 1]]`` laid end to end, and their new offsets.

    They are taken as Arrow's binary strings, which are copied whole rather than value by value.
    """
    size = values.itemsize
    strings = pa.Array.from_buffers(
        pa.large_binary(),
        len(offsets) - 1,
        [None, pa.py_buffer(offsets * size), pa.py_buffer(np.ascontiguousarray(values))],
    ).take(to_arrow(runs))
    _, ends, content = strings.buffers()
    taken = np.frombuffer(content, values.dtype) if content else values[:0]
    moved = np.frombuffer(ends, np.int64, len(runs) + 1) // size
    return taken[: moved[-1]], moved


PAGE = 1 << 22
"""Bytes of a parquet page before compression: files are a sixth smaller than with 1 MB."""

HASH_TOKENS = 1 << 15
"""Tokens hashed at once: what fits a core's cache."""


def hashes(shard: Shard) -> UInt64:
    """A 64-bit hash of each document's tokens and of which of them are trained, [documents].

    A polynomial modulo 2**64 over the mixed tokens, its powers counted from the document's
    start, then mixed with the document's length.
    """
    found = [np.zeros(0, np.uint64)]
    for block in shard.blocks(HASH_TOKENS):
        values = block.ids.astype(np.uint64)
        if block.trained is not None:
            values |= (~block.trained).astype(np.uint64) << np.uint64(32)
        values += np.uint64(0x9E3779B97F4A7C15)
        values *= np.uint64(0xBF58476D1CE4E5B9)
        values ^= values >> np.uint64(32)
        powers, inverses = _powers(block.tokens)
        values *= powers[: block.tokens]
        starts, filled = block.offsets[:-1], block.lengths > 0
        sums = np.zeros(block.documents, np.uint64)
        sums[filled] = np.add.reduceat(values, starts[filled]) if filled.any() else 0
        sums *= inverses[np.minimum(starts, block.tokens - 1)]
        found.append(mix(sums + block.lengths.astype(np.uint64)))
    return np.concatenate(found)


def _powers(count: int) -> tuple[UInt64, UInt64]:
    """Powers 0, 1, … of the polynomial's base, at least ``count``, and their inverses."""
    return _table(1 << max(count, HASH_TOKENS).bit_length())


@functools.lru_cache(maxsize=2)
def _table(count: int) -> tuple[UInt64, UInt64]:
    base = 0xD1342543DE82EF95
    steps = np.full(count, base, np.uint64), np.full(count, pow(base, -1, 1 << 64), np.uint64)
    for step in steps:
        step[0] = 1
        np.multiply.accumulate(step, out=step)
    return steps


def mix(values: UInt64) -> UInt64:
    """Sebastiano Vigna's SplitMix64 of each value: a bijection with good avalanche."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def checksum(rows: UInt64) -> int:
    """A number for a multiset of row hashes, the same in any order."""
    return int(np.add.reduce(rows, dtype=np.uint64))


def add_checksums(*sums: int) -> int:
    return sum(sums) % (1 << 64)


class Writer:
    """A parquet file that is being written, with a checksum for each page."""

    def __init__(self, path: Path, masked: bool, codec: str):
        names = ["input_ids", "labels"] if masked else ["input_ids"]
        # nothing is ever null, and readers need not look for it
        rows = pa.list_(pa.field("element", pa.int32(), nullable=False))
        self._schema = pa.schema([pa.field(name, rows, nullable=False) for name in names])
        # the bytes of a number are stored separately: written half again as fast, 7 % larger.
        # Files of the original's codec stay as the original's readers know them
        split = [f"{name}.list.element" for name in names] if codec != "gzip" else []
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            compression=codec,
            column_encoding=dict.fromkeys(split, "BYTE_STREAM_SPLIT") or None,
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
            data_page_size=PAGE,
        )

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()

    def write(self, group: Shard) -> None:
        """Add documents, fewer than 2**31 tokens, as one row group."""
        offsets = to_arrow(group.offsets.astype(np.int32))
        columns = [group.ids]
        if len(self._schema) == 2:
            labels = group.ids
            if group.trained is not None:
                labels = np.where(group.trained, group.ids, np.int32(UNTRAINED))
            columns.append(labels)
        arrays = [
            pa.ListArray.from_arrays(offsets, to_arrow(column), type=field.type)
            for field, column in zip(self._schema, columns, strict=True)
        ]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))


def write(path: Path, shard: Shard, codec: str) -> None:
    """Write a parquet file, a row group for each of the shard's blocks."""
    with Writer(path, shard.trained is not None, codec) as writer:
        for block in shard.blocks():
            writer.write(block)


@dataclass(frozen=True)
class Group:
    """A row group of a parquet file."""

    path: Path
    number: int
    documents: int
    tokens: int
    """Not fewer than there are: a document without tokens may count as one."""


def groups(path: Path) -> tuple[list[Group], bool]:
    """The row groups of a file and whether it has labels, by its footer. Raises Damaged."""
    try:
        with pq.ParquetFile(path) as file:
            names, footer = file.schema_arrow.names, file.metadata
    except (OSError, pa.ArrowException) as error:
        raise Damaged(str(error).splitlines()[0]) from None
    if "input_ids" not in names:
        raise Damaged(f"has no column input_ids, but {', '.join(names)}")
    column = names.index("input_ids")
    found = [footer.row_group(i) for i in range(footer.num_row_groups)]
    return [
        Group(path, i, group.num_rows, group.column(column).num_values)
        for i, group in enumerate(found)
    ], "labels" in names


def read_group(group: Group) -> Iterator[Shard]:
    """The documents of a row group, about ``BLOCK_TOKENS`` tokens at a time. Raises Damaged."""
    rows = max(1, BLOCK_TOKENS * group.documents // max(1, group.tokens))
    try:
        with pq.ParquetFile(group.path, page_checksum_verification=True) as file:
            names = [n for n in ("input_ids", "labels") if n in file.schema_arrow.names]
            if rows >= group.documents:  # whole, which is twice as fast
                table = file.read_row_group(group.number, names, use_threads=False)
                yield from map(_from_batch, table.to_batches())
                return
            for batch in file.iter_batches(rows, [group.number], names, use_threads=False):
                yield _from_batch(batch)
    except (OSError, pa.ArrowException) as error:
        raise Damaged(str(error).splitlines()[0]) from None


def read(path: Path) -> Shard:
    """Read a whole file that ``write`` made. Raises Damaged."""
    found = [shard for group in groups(path)[0] for shard in read_group(group)]
    if not found:
        raise Damaged("holds no rows")
    return join(found)


def _from_batch(batch: Any) -> Shard:
    if "input_ids" not in batch.schema.names:
        raise Damaged(f"has no column input_ids, but {', '.join(batch.schema.names)}")
    ids, offsets = _column(batch.column("input_ids"))
    if "labels" not in batch.schema.names:
        return Shard(ids, offsets)
    labels, label_offsets = _column(batch.column("labels"))
    trained = labels != UNTRAINED
    if not np.array_equal(offsets, label_offsets) or not np.array_equal(
        labels[trained], ids[trained]
    ):
        raise Damaged(f"labels are neither the token's id nor {UNTRAINED}")
    return Shard(ids, offsets, trained)


def _column(column: Any) -> tuple[Int32, Int64]:
    offsets = to_numpy(column.offsets).astype(np.int64)
    values = to_numpy(column.values)[offsets[0] : offsets[-1]]
    return values, offsets - offsets[0]
