from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from easyllm.data import shards
from easyllm.data.shards import Shard, checksum, hashes, join, read, write


def shard(documents: int, seed: int, masked: bool) -> Shard:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 50, documents)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = draw.integers(0, 50_000, offsets[-1]).astype(np.int32)
    return Shard(ids, offsets, draw.random(len(ids)) < 0.5 if masked else None)


def same(a: Shard, b: Shard) -> bool:
    return (
        np.array_equal(a.ids, b.ids)
        and np.array_equal(a.offsets, b.offsets)
        and ((a.trained is None) == (b.trained is None))
        and (a.trained is None or np.array_equal(a.trained, b.trained))
    )


@pytest.mark.parametrize("masked", [False, True])
def test_a_file_gives_back_what_was_written(
    tmp_path: Path, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "BLOCK_TOKENS", 500)
    whole = shard(300, 0, masked)
    write(tmp_path / "a.parquet", whole, "zstd")
    table = pq.read_table(tmp_path / "a.parquet")
    assert {str(field.type.value_type) for field in table.schema} == {"int32"}
    assert table.column_names == ["input_ids", "labels"][: 1 + masked]
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups > 5
    assert same(read(tmp_path / "a.parquet"), whole)
    if masked:
        ids, labels = (
            table[name].combine_chunks().values.to_numpy() for name in table.schema.names
        )
        assert np.array_equal(labels, np.where(whole.trained, ids, -100))


@pytest.mark.parametrize("how", ["cut", "flipped", "gone", "foreign"])
def test_damage_is_noticed(tmp_path: Path, how: str) -> None:
    file = tmp_path / "a.parquet"
    write(file, shard(300, 0, True), "zstd")
    content = bytearray(file.read_bytes())
    if how == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        content[len(content) // 3] ^= 4
        file.write_bytes(content)
    elif how == "gone":
        file.unlink()
    else:
        import pyarrow as pa

        pq.write_table(pa.table({"text": ["a"]}), file)
    with pytest.raises(shards.Damaged):
        read(file)


def test_hashes_tell_documents_apart_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shard(500, 1, True)
    found = hashes(whole)
    assert len(set(found.tolist())) == 500
    monkeypatch.setattr(shards, "BLOCK_TOKENS", 64)
    assert np.array_equal(hashes(whole), found)
    order = np.random.default_rng(2).permutation(500)
    assert np.array_equal(hashes(whole.take(order)), found[order])
    assert checksum(found[order]) == checksum(found)
    swapped = Shard(whole.ids[::-1].copy(), whole.offsets, whole.trained)
    assert checksum(hashes(swapped)) != checksum(found)
    assert whole.trained is not None
    untrained = Shard(whole.ids, whole.offsets, ~whole.trained)
    assert not np.any(hashes(untrained) == found)


def test_taking_and_joining_move_whole_documents() -> None:
    a, b = shard(20, 3, False), shard(30, 4, True)
    both = join([a, b])
    assert both.documents == 50 and both.trained_tokens == a.tokens + b.trained_tokens
    assert same(both.take(np.arange(20, 50)), b)
    again = both.take(np.array([4, 4]))
    assert np.array_equal(again.ids[: again.offsets[1]], a.ids[a.offsets[4] : a.offsets[5]])
    assert again.lengths[0] == again.lengths[1]
