from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from easyllm.data.store import shards
from easyllm.data.store.arrays import to_arrow, to_numpy
from easyllm.data.store.shards import Damaged, Shard, checksum, hashes, join, read, write


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


def test_a_token_that_is_null_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"input_ids": pa.array([[1, None], [2]], pa.list_(pa.int32()))}), path)
    with pytest.raises(Damaged, match="1 of 3 numbers are null"):
        read(path)


def test_numbers_go_between_numpy_and_arrow() -> None:
    for values in (np.arange(9, dtype=np.int32)[::2], np.array([], np.int64), np.arange(3.0)):
        there = to_arrow(values)
        assert there.to_pylist() == values.tolist()
        back = to_numpy(there.slice(1))
        assert back.dtype == values.dtype and np.array_equal(back, values[1:])


def test_writing_does_not_import_pandas(tmp_path: Path) -> None:
    """Which takes a worker 0.2 s, and which nothing here uses."""
    code = (
        "import sys, numpy as np; from pathlib import Path; from easyllm.data.store import shards;"
        "shard = shards.Shard(np.arange(5, dtype=np.int32), np.array([0, 2, 5]));"
        "shards.write(Path(sys.argv[1]), shard.take(np.array([1, 0])), 'zstd');"
        "assert shards.read(Path(sys.argv[1])).ids.tolist() == [2, 3, 4, 0, 1];"
        "assert 'pandas' not in sys.modules"
    )
    place = str(tmp_path / "x.parquet")
    done = subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
