"""Plans: every token in one slot of one row, documents whole where they fit, rows full."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyllm.data.packing import Packing, Plan, pieces, rows_needed
from easyllm.data.shards import Int64

LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=80)


def planned(lengths: list[int], seq_len: int, packing: Packing, seed: int = 0) -> Plan:
    sizes = np.array(lengths, np.int64)
    rng = np.random.default_rng(seed)
    return Plan.of(np.cumsum(sizes) - sizes, sizes, seq_len, packing, rng)


def read(plan: Plan) -> tuple[list[Int64], list[Int64]]:
    """By row: the token in each slot, -1 for padding, and where documents begin."""
    rows, begun = [], []
    for number in range(plan.rows):
        row = np.full(plan.seq_len, -1)
        for place, slot, tokens in plan.row(number):
            assert np.all(row[slot : slot + tokens] == -1)
            row[slot : slot + tokens] = np.arange(place, place + tokens)
        rows.append(row)
        begun.append(np.array([slot for _, slot, _ in plan.row(number)]))
    return rows, begun


@pytest.mark.parametrize("packing", ["none", "concat", "best_fit"])
@given(lengths=LENGTHS, seq_len=st.integers(1, 40))
def test_no_token_is_lost_and_none_comes_twice(
    packing: Packing, lengths: list[int], seq_len: int
) -> None:
    rows, begun = read(planned(lengths, seq_len, packing))
    tokens = np.concatenate(rows)
    assert np.array_equal(np.sort(tokens[tokens >= 0]), np.arange(sum(lengths)))
    ends = np.cumsum(lengths)
    for row, begins in zip(rows, begun, strict=True):
        assert begins[0] == 0
        for piece in np.split(row, begins[1:]):
            real = piece[piece >= 0]
            assert len(real) and np.array_equal(real, piece[: len(real)]), "padding stands right"
            assert np.array_equal(real, np.arange(real[0], real[0] + len(real)))
            first, last = np.searchsorted(ends, (real[0], real[-1]), "right")
            assert first == last, "a piece is of one document"


@given(lengths=LENGTHS, seq_len=st.integers(1, 40), seed=st.integers(0, 5))
def test_best_fit_cuts_only_what_is_longer_than_a_row(
    lengths: list[int], seq_len: int, seed: int
) -> None:
    plan = planned(lengths, seq_len, "best_fit", seed)
    _, begun = read(plan)
    assert sum(map(len, begun)) == sum(-(-length // seq_len) for length in lengths)
    assert len(plan.slots) == sum(map(len, begun))


@given(lengths=LENGTHS, seq_len=st.integers(1, 40))
def test_best_fit_fills_rows_as_the_slow_rule_does(lengths: list[int], seq_len: int) -> None:
    _, _, sizes = pieces(np.array(lengths, np.int64), seq_len)
    free: list[int] = []
    for size in sorted(sizes.tolist(), reverse=True):
        tightest = min((room for room in free if room >= size), default=None)
        if tightest is None:
            free.append(seq_len - size)
        else:
            free[free.index(tightest)] -= size
    rows, _ = read(planned(lengths, seq_len, "best_fit"))
    assert sorted(free) == sorted(int(np.sum(row < 0)) for row in rows)
    assert rows_needed(np.bincount(sizes), seq_len) == len(rows)


@pytest.mark.parametrize("seq_len", [2048, 100_000])
def test_many_documents_fill_their_rows(seq_len: int) -> None:
    drawn = np.exp(np.random.default_rng(1).normal(5.5, 1.3, 50_000)).astype(np.int64) + 2
    plan = planned(drawn.tolist(), seq_len, "best_fit")
    assert plan.rows <= 1.001 * -(-drawn.sum() // seq_len)
    assert np.all(plan.slots // seq_len == (plan.slots + plan.lengths - 1) // seq_len)
    assert np.all(plan.slots[:-1] + plan.lengths[:-1] <= plan.slots[1:])


def test_documents_as_long_meet_others_in_each_epoch() -> None:
    lengths = [7, 7, 7, 7, 3, 3, 3, 3]
    order = np.random.default_rng(0).permutation(8)
    first = planned(lengths, 10, "best_fit")
    starts, sizes = np.cumsum(lengths) - lengths, np.array(lengths)
    rng = np.random.default_rng(1)
    second = Plan.of(starts[order], sizes[order], 10, "best_fit", rng)
    pairs = [{frozenset(row.tolist()) for row in read(plan)[0]} for plan in (first, second)]
    assert all(len(pair) == 4 for pair in pairs) and pairs[0] != pairs[1]


@pytest.mark.parametrize("packing", ["none", "concat", "best_fit"])
def test_a_plan_without_documents_has_no_rows(tmp_path: Path, packing: Packing) -> None:
    planned([], 8, packing).save(tmp_path)
    assert Plan.open(tmp_path, 8).rows == 0
