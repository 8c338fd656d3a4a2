"""Parquet files of token ids: one row a document, unpadded.

Columns are ``input_ids`` and, for conversations, ``labels`` (-100 where untrained), both
list<int32>. In memory a shard is flat arrays with offsets, never lists of lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

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
        at, offsets = gather(self.offsets[:-1][documents], self.lengths[documents])
        trained = None if self.trained is None else self.trained[at]
        return Shard(self.ids[at], offsets, trained)

    def blocks(self) -> Iterator[Shard]:
        """The documents in order, about ``BLOCK_TOKENS`` tokens at a time."""
        first = 0
        while first < self.documents:
            until = int(np.searchsorted(self.offsets, self.offsets[first] + BLOCK_TOKENS, "right"))
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


def hashes(shard: Shard) -> UInt64:
    """A 64-bit hash of each document's tokens and of which of them are trained, [documents]."""
    found = [np.zeros(0, np.uint64)]
    for block in shard.blocks():
        values = block.ids.astype(np.uint64)
        if block.trained is not None:
            values |= (~block.trained).astype(np.uint64) << np.uint64(32)
        starts, lengths = block.offsets[:-1], block.lengths
        place = np.arange(block.tokens) - np.repeat(starts, lengths)
        values += place.astype(np.uint64) * np.uint64(0xD1342543DE82EF95)
        sums = np.add.reduceat(mix(values), starts)
        found.append(mix(sums + lengths.astype(np.uint64)))
    return np.concatenate(found)


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
    """A number that a multiset of row hashes determines, in whatever order."""
    return int(np.add.reduce(rows, dtype=np.uint64))


def add_checksums(*sums: int) -> int:
    return sum(sums) % (1 << 64)


def write(path: Path, shard: Shard, codec: str) -> None:
    """Write a parquet file with a checksum for each page."""
    names = ["input_ids"] if shard.trained is None else ["input_ids", "labels"]
    schema = pa.schema([(name, pa.list_(pa.int32())) for name in names])
    with pq.ParquetWriter(
        path,
        schema,
        compression=codec,
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    ) as writer:
        for block in shard.blocks():
            offsets = pa.array(block.offsets.astype(np.int32))
            columns = [block.ids]
            if block.trained is not None:
                columns.append(np.where(block.trained, block.ids, np.int32(UNTRAINED)))
            arrays = [pa.ListArray.from_arrays(offsets, pa.array(column)) for column in columns]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def read(path: Path) -> Shard:
    """Read a file that ``write`` made. Raises Damaged."""
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        with file:
            groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
    except (OSError, pa.ArrowException) as error:
        raise Damaged(str(error).splitlines()[0]) from None
    if not groups:
        raise Damaged("holds no rows")
    return join([_from_batch(batch) for group in groups for batch in group.to_batches()])


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
    offsets = column.offsets.to_numpy().astype(np.int64)
    values = column.values.to_numpy()[offsets[0] : offsets[-1]]
    return values, offsets - offsets[0]
