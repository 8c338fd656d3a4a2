"""The shuffle: uniform, the same whatever the workers and the memory, and even."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easyllm.data.shuffle import external_sort
from easyllm.data.shuffle.external_sort import Index, Unit
from easyllm.data.shuffle.job import Limits
from easyllm.data.store import manifest, shards, token_files
from easyllm.data.store.shards import Group, Shard, join
from easyllm.errors import UserError
from easyllm.files import atomic_dir, write_json
from easyllm.paths import StorePaths
from tests.data.conftest import Spec, work

BLOCK = shards.BLOCK_TOKENS


def rows(lengths: list[int], masked: bool = False, first: int = 0) -> Shard:
    """Documents of these lengths; the tokens of document i are all ``first`` + i."""
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    ids = np.repeat(np.arange(first, first + len(lengths), dtype=np.int32), lengths)
    return Shard(ids, offsets, ids % 2 == 0 if masked else None)


def write_store(place: StorePaths, sources: dict[str, list[Shard]]) -> None:
    """A token store with these files a source."""
    place.tokenizer.mkdir(parents=True, exist_ok=True)
    made = {}
    with atomic_dir(place.tokens) as temporary:
        for name, files in sources.items():
            entries = [
                token_files.save(
                    temporary / f"{name}/{i}.parquet", f"{name}/{i}.parquet", shard, "none"
                )
                for i, shard in enumerate(files)
            ]
            made[name] = {"dataset": name, "weight": 1.0, **token_files.totals(entries)}
        content = {
            "schema": manifest.SCHEMA,
            "chats": {},
            "made_from": {},
            **dict.fromkeys(manifest.CARRIED, ""),
            "sources": made,
            "metrics": {},
        }
        write_json(temporary / "manifest.json", content)


def files(place: StorePaths) -> dict[str, bytes]:
    root = place.shuffled
    return {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*.parquet")}


def shuffled(folder: Path, units: list[Unit], seed: int, capacity: int, masked: bool) -> Shard:
    """All of one source in its new order, in three stretches."""
    made = external_sort.sort(units, masked, capacity, seed, "text", folder)
    index = Index(made.runs)
    tokens = int(index.tokens(index.end[None])[0])
    bounds = index.at_tokens(np.array([0, tokens // 3, tokens // 2, tokens]))
    return join(list(external_sort.merge(made.runs, bounds, masked, capacity)))


def units_of(folder: Path, files: list[Shard]) -> list[Unit]:
    units = []
    for number, shard in enumerate(files):
        shards.write(folder / f"{number}.parquet", shard, "none")
        groups, _ = shards.groups(folder / f"{number}.parquet")
        units += [Unit(number, group) for group in groups]
    return units


def test_every_order_is_equally_likely(tmp_path: Path) -> None:
    """Chi-square over the 24 orders of four documents in two files, and of six's places."""
    seeds = 480
    units = units_of(tmp_path, [rows([1, 2]), rows([3, 1], first=2)])
    orders: Counter[tuple[int, ...]] = Counter()
    for seed in range(seeds):
        whole = shuffled(tmp_path / f"{seed}", units, seed, 4, masked=False)
        orders[tuple(whole.ids[whole.offsets[:-1]].tolist())] += 1
    assert set(orders) == set(itertools.permutations(range(4)))
    expected = seeds / math.factorial(4)
    statistic = sum((count - expected) ** 2 / expected for count in orders.values())
    assert statistic < 49.7  # 0.1 % of the chi-square distribution with 23 degrees of freedom


@given(
    lengths=st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=40), min_size=1, max_size=4),
    masked=st.booleans(),
    seed=st.integers(0, 5),
    lowest=st.sampled_from([0, (1 << 16) - 40, 1 << 16]),
)
@settings(max_examples=40, deadline=None)
def test_what_is_held_at_once_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[list[int]],
    masked: bool,
    seed: int,
    lowest: int,
) -> None:
    folder = tmp_path_factory.mktemp("spill")
    sizes = itertools.accumulate([lowest, *(len(file) for file in lengths)])
    written = [rows(file, masked, first) for file, first in zip(lengths, sizes, strict=False)]
    units = units_of(folder, written)
    before = np.sort(shards.hashes(join(written)))
    whole = shuffled(folder / "one", units, seed, 10_000, masked)
    assert np.array_equal(np.sort(shards.hashes(whole)), before)
    for capacity in (1, 7, 100):
        again = shuffled(folder / str(capacity), units, seed, capacity, masked)
        assert np.array_equal(again.ids, whole.ids)
        assert np.array_equal(again.offsets, whole.offsets)
        assert (again.trained is None) != masked
        assert not masked or np.array_equal(again.trained, whole.trained)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store large enough that five processes have work."""
    folder = tmp_path_factory.mktemp("large")
    draw = np.random.default_rng(0)
    sources: dict[str, list[Shard]] = {}
    for name, count, masked in (("stories", 5, False), ("talks", 2, True)):
        sources[name] = []
        for _ in range(count):
            lengths = draw.integers(100, 4000, 1500)
            sources[name].append(rows(lengths.tolist(), masked))
    write_store(StorePaths(folder / "store"), sources)
    return folder


def linked(large: Path, folder: Path) -> StorePaths:
    place = StorePaths(folder / "store")
    place.root.mkdir(parents=True)
    place.tokens.symlink_to(large / "store/tokens")
    place.tokenizer.mkdir()
    return place


def test_workers_and_memory_change_nothing(large: Path, spec: Spec, tmp_path: Path) -> None:
    made = []
    for workers, memory in ((1, 4.0), (2, 0.7), (5, 2.0), (1, 0.4)):
        folder = tmp_path / f"{workers}-{memory}"
        place = linked(large, folder)
        (metrics,) = work(spec(folder, data={"workers": workers, "memory_gb": memory}), "shuffle")
        found = manifest.require(place, "shuffle")
        made.append((files(place), found["sources"]))
        assert not list(place.root.glob(".*"))
    assert all(other == made[0] for other in made)
    before = manifest.require(StorePaths(large / "store"), "tokenize")
    total = sum(source["checksum"] for source in before["sources"].values())
    assert metrics["checksum"] == total % (1 << 64)
    partitions: list[int] = []
    for number in range(3):
        shares = [source["files"][number]["tokens"] for source in found["sources"].values()]
        assert all(shares)
        partitions.append(sum(shares))
    longest = 4000
    assert max(partitions) - min(partitions) <= 2 * longest
    assert max(partitions) - min(partitions) < 0.01 * min(partitions)


def test_a_file_that_holds_other_tokens_is_named(spec: Spec, tmp_path: Path) -> None:
    place = StorePaths(tmp_path / "store")
    write_store(place, {"stories": [rows([5] * 9), rows([5] * 9)], "talks": [rows([2] * 9, True)]})
    shards.write(place.tokens / "stories/1.parquet", rows([5] * 9, first=1), "none")
    with pytest.raises(UserError, match=r"stories/1\.parquet is damaged \(its tokens are not"):
        work(spec(tmp_path), "shuffle")
    shards.write(place.tokens / "stories/1.parquet", rows([6] * 9), "none")
    with pytest.raises(UserError, match=r"holds 9 documents of 54 tokens, not 9 of 45"):
        work(spec(tmp_path), "shuffle")
    assert not place.shuffled.exists()


def test_a_file_of_one_huge_document_is_not_starved(spec: Spec, tmp_path: Path) -> None:
    place = StorePaths(tmp_path / "store")
    write_store(place, {"stories": [rows([100_000, 1, 1])], "talks": [rows([1] * 9, True)]})
    work(spec(tmp_path), "shuffle")
    sources = manifest.require(place, "shuffle")["sources"]
    assert [file["documents"] for file in sources["stories"]["files"]] == [1, 1, 1]
    assert sum(file["documents"] for file in sources["talks"]["files"]) == 9
    assert all(file["documents"] for file in sources["talks"]["files"])


def test_too_little_memory_or_room_is_said(
    large: Path, spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked(large, tmp_path)
    with pytest.raises(
        UserError, match=r"data\.memory_gb=0\.1 does not hold.*give data\.memory_gb"
    ):
        work(spec(tmp_path, data={"memory_gb": 0.1}), "shuffle")
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda root: usage)
    with pytest.raises(UserError, match=r"takes 0\.1 GB beside the store.*make room"):
        work(spec(tmp_path), "shuffle")
    assert not (tmp_path / "store/shuffled").exists()


def test_limits_keep_all_processes_under_the_bound() -> None:
    for memory, cores in itertools.product((0.4e9, 1e9, 4e9, 64e9), (1, 2, 16, 128)):
        limits = Limits.of(memory, cores, 10**12)
        assert 1 <= limits.workers <= cores
        assert limits.capacity >= BLOCK
    assert Limits.of(4e9, 8, 1000).workers == 1  # little is not worth a process


def test_groups_larger_than_memory_are_read_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.parquet"
    whole = rows([5] * 1000, masked=True)
    shards.write(file, whole, "none")
    monkeypatch.setattr(shards, "BLOCK_TOKENS", 500)
    (group,), masked = shards.groups(file)
    assert masked and group == Group(file, 0, 1000, 5000)

    def parts() -> Iterator[Any]:
        return shards.read_group(group)

    assert max(part.tokens for part in parts()) <= 500
    assert np.array_equal(shards.hashes(join(list(parts()))), shards.hashes(whole))
