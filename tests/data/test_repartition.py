"""Shuffle and repartition as a whole: uniform, even, and nothing lost."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easyllm.data.store import manifest, shards, token_files
from easyllm.data.store.shards import Shard
from easyllm.errors import UserError
from easyllm.paths import RunPaths
from easyllm.spec.run import RunSpec
from tests.data.conftest import work
from tests.data.made import shard, tokens_store

STAGES = ["tokenize", "shuffle", "repartition"]


def order_of(run: RunSpec, stage: str, source: str) -> list[int]:
    """The first token of each document of a source, in order."""
    place = RunPaths(run).store
    found = manifest.require(place, stage)
    return [
        int(part.ids[at])
        for part, _ in token_files.load(place, stage, found, source)
        for at in part.offsets[:-1]
    ]


def test_every_document_may_come_to_every_place(tmp_path: Path) -> None:
    """Chi-square over the stage itself: the orders of three documents, seed by seed."""
    seeds, orders = 120, Counter[tuple[int, ...]]()
    files = [shard([[1], [2, 2]], None), shard([[3, 3, 3]], None)]
    for seed in range(seeds):
        data = {"partitions": 1}
        run = tokens_store(tmp_path / f"{seed}", {"a": files}, seed=seed, stages=STAGES, data=data)
        work(run, "shuffle")
        orders[tuple(order_of(run, "shuffle", "a"))] += 1
    assert sum(orders.values()) == seeds and all(sorted(o) == [1, 2, 3] for o in orders)
    expected = seeds / math.factorial(3)
    statistic = sum((orders[o] - expected) ** 2 / expected for o in orders)
    statistic += expected * (math.factorial(3) - len(orders))
    assert statistic < 20.5  # 0.1 % of the chi-square distribution with 5 degrees of freedom


@settings(max_examples=10)
@given(
    sources=st.lists(
        st.tuples(st.integers(2000, 4000), st.integers(1, 40), st.integers(1, 3), st.booleans()),
        min_size=1,
        max_size=3,
    ),
    partitions=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_partitions_are_even_and_hold_everything(
    tmp_path_factory: pytest.TempPathFactory,
    sources: list[tuple[int, int, int, bool]],
    partitions: int,
    seed: int,
) -> None:
    """Each data set in every partition, tokens equal within 1 %, no document lost or changed."""
    draw = np.random.default_rng(seed)
    given_: dict[str, list[Shard]] = {}
    for number, (documents, longest, files, masked) in enumerate(sources):
        given_[f"source{number}"] = []
        for part in np.array_split(draw.integers(1, longest + 1, documents), files):
            ids = draw.integers(0, 50_000, part.sum(), np.int32)
            trained = draw.random(len(ids)) < 0.5 if masked else None
            given_[f"source{number}"].append(Shard(ids, np.append(0, np.cumsum(part)), trained))
    folder = tmp_path_factory.mktemp("partitions")
    run = tokens_store(folder, given_, seed=seed, stages=STAGES, data={"partitions": partitions})
    work(run, "shuffle", "repartition")
    place = RunPaths(run).store
    found = manifest.require(place, "repartition")
    tokens = np.zeros(partitions, np.int64)
    for name, parts in given_.items():
        before = np.concatenate([shards.hashes(part) for part in parts])
        loaded = list(token_files.load(place, "repartition", found, name))
        assert len(loaded) == partitions
        assert np.array_equal(np.sort(before), np.sort(np.concatenate([h for _, h in loaded])))
        shares = np.array([part.tokens for part, _ in loaded])
        assert shares.min() > 0
        assert shares.max() - shares.min() <= 0.01 * shares.mean() + max(
            p.lengths.max() for p in parts
        )
        tokens += shares
    assert tokens.max() - tokens.min() <= 0.01 * tokens.mean() + 1


def test_a_partition_is_not_repaired_from_what_is_damaged(tmp_path: Path) -> None:
    """Where it is a link, the shuffled file is the same one."""
    files = [shard([[n, n + 1] for n in range(40)], None)]
    run = tokens_store(tmp_path, {"a": files}, stages=STAGES, data={"partitions": 2})
    place = RunPaths(run).store
    work(run, "shuffle", "repartition")
    before = order_of(run, "repartition", "a")
    (file, _) = sorted(place.partitions.rglob("*.parquet"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    file.unlink()
    with pytest.raises(UserError, match="remove it and run again with shuffle") as told:
        work(run, "repartition")
    Path(str(told.value).partition(" is damaged")[0]).unlink()
    work(run, "shuffle", "repartition")
    assert order_of(run, "repartition", "a") == before
