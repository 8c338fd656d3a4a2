"""Weights by source and the held-out split, as the documents that epochs really hold."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyllm.data.dataset.epochs import WeightedSource
from easyllm.data.dataset.rows import Rows, open_rows
from easyllm.spec.run import RunSpec
from tests.data.made import shard, tokens_store

WEIGHTS = {"twice": 2.0, "half": 0.5, "thrice_in_two": 1.5}
DOCUMENTS = {"twice": 30, "half": 21, "thrice_in_two": 17}
LENGTH = 5


@given(
    documents=st.integers(1, 40),
    hundredths=st.integers(1, 350),
    seed=st.integers(0, 3),
    epochs=st.integers(1, 12),
)
def test_any_weight_is_honoured_in_every_epoch(
    documents: int, hundredths: int, seed: int, epochs: int
) -> None:
    part = WeightedSource("source", np.arange(documents), hundredths / 100)
    weight = Fraction(hundredths, 100)
    seen: Counter[int] = Counter()
    for epoch in range(epochs):
        chosen = Counter(part.chosen(epoch, seed).tolist())
        until = [math.floor((epoch + e) * (weight % 1) * documents) for e in (0, 1)]
        assert chosen.total() == math.floor(weight) * documents + until[1] - until[0]
        assert abs(chosen.total() - weight * documents) < 1
        seen += chosen
        counts = {seen[document] for document in range(documents)}
        assert max(counts) - min(counts) <= 1, "none is ahead of the others"


def weighted(folder: Path, packing: str, fraction: float = 0.0, seed: int = 7) -> RunSpec:
    """Three sources of documents that are one token, ``LENGTH`` times."""
    sources = {}
    for first, (name, count) in zip((1, 101, 201), DOCUMENTS.items(), strict=True):
        sources[name] = [shard([[first + n] * LENGTH for n in range(count)], None)]
    return tokens_store(
        folder,
        sources,
        WEIGHTS,
        seed=seed,
        data={"seq_len": 20, "packing": packing},
        training={"evaluate": {"fraction": fraction}},
    )


def epochs(rows: Rows, count: int) -> list[Counter[int]]:
    """How often each document is in each of the first epochs, by its tokens."""
    found: list[Counter[int]] = [Counter() for _ in range(count)]
    index = 0
    while (epoch := rows.epoch(index)) < count:
        found[epoch].update(rows.sample(index).input_ids[: rows.filled(index)].tolist())
        index += 1
    assert all(tokens % LENGTH == 0 for epoch in found for tokens in epoch.values())
    return [Counter({token: n // LENGTH for token, n in epoch.items()}) for epoch in found]


@pytest.mark.parametrize("packing", ["best_fit", "concat", "none"])
def test_rows_hold_each_source_as_often_as_its_weight_says(tmp_path: Path, packing: str) -> None:
    rows = open_rows(weighted(tmp_path, packing))
    found = epochs(rows, 4)
    for place, (name, count) in enumerate(DOCUMENTS.items()):
        mine = range(1 + 100 * place, 1 + 100 * place + count)
        for number, epoch in enumerate(found):
            total = sum(epoch[document] for document in mine)
            assert abs(total - WEIGHTS[name] * count) < 1, (name, number)
        for pair in (found[:2], found[2:]):
            seen = {sum(epoch[document] for epoch in pair) for document in mine}
            assert seen == {2 * WEIGHTS[name]}, "two epochs are whole for every document"


@pytest.mark.parametrize("packing", ["best_fit", "concat"])
def test_no_row_of_an_epoch_holds_a_document_twice(tmp_path: Path, packing: str) -> None:
    rows = open_rows(weighted(tmp_path, packing))
    for index in range(4 * rows.per_epoch):
        row = rows.sample(index)
        held = [set(piece.tolist()) for piece in np.split(
            row.input_ids[: rows.filled(index)],
            np.flatnonzero(row.positions[: rows.filled(index)] == 0)[1:],
        )]  # fmt: skip
        assert len(set.union(*held)) == len(held), index


def test_rows_laid_by_another_rule_are_other_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint keeps the fingerprint: where a new rule lays rows otherwise, its run is told so
    instead of going on with other rows; runs that have no copies go on."""
    run, plain = weighted(tmp_path / "a", "best_fit"), tokens_store(
        tmp_path / "b", {"once": [shard([[1] * LENGTH], None)]}, data={"seq_len": 20}
    )  # fmt: skip
    before = [open_rows(run).fingerprint, open_rows(plain).fingerprint]
    monkeypatch.setattr("easyllm.data.dataset.rows.COPIES_VERSION", 99)
    after = [open_rows(run).fingerprint, open_rows(plain).fingerprint]
    assert before[0] != after[0] and before[1] == after[1]


@pytest.mark.parametrize("packing", ["best_fit", "concat", "none"])
def test_what_is_held_out_is_in_no_epoch(tmp_path: Path, packing: str) -> None:
    rows = open_rows(weighted(tmp_path, packing, 0.2))
    # token 0 is padding
    held = {int(token) for row in rows.heldout() for token in row.input_ids} - {0}
    trained = {token for epoch in epochs(rows, 4) for token in epoch}
    assert not held & trained
    counts = rows.manifest["sources"]
    assert len(held) == sum(source["heldout_documents"] for source in counts.values())
    assert len(held | trained) == sum(DOCUMENTS.values())
    for name, count in DOCUMENTS.items():
        assert counts[name]["heldout_documents"] == round(0.2 * count), "of each source its share"
    moved = open_rows(weighted(tmp_path / "moved", packing, 0.2, seed=8))
    assert {int(token) for row in moved.heldout() for token in row.input_ids} - {0} != held
