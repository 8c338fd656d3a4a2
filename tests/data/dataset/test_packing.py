"""Plans: every token in one slot of one row, documents whole where they fit, rows full."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from easyllm.data.dataset.best_fit import pieces, rows_needed
from easyllm.data.dataset.packing import Packing, Plan
from easyllm.data.store.shards import Int64

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


def repeated(
    lengths: list[int], copies: list[int], seq_len: int, packing: Packing, seed: int = 0
) -> Plan:
    """A plan of documents, each as often as ``copies`` says."""
    sizes = np.array(lengths, np.int64)
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.repeat(np.arange(len(sizes)), copies))
    starts = np.cumsum(sizes) - sizes
    return Plan.of(starts[order], sizes[order], seq_len, packing, rng, repeated=True)


def sharing(plan: Plan) -> int:
    """Rows that hold a token twice."""
    real = [row[row >= 0] for row in read(plan)[0]]
    return sum(len(np.unique(row)) < len(row) for row in real)


COPIES = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 6)), min_size=1, max_size=60)


@pytest.mark.parametrize("packing", ["none", "concat", "best_fit"])
@given(drawn=COPIES, seq_len=st.integers(1, 40), seed=st.integers(0, 3))
def test_each_copy_is_laid_once(
    packing: Packing, drawn: list[tuple[int, int]], seq_len: int, seed: int
) -> None:
    lengths, copies = map(list, zip(*drawn, strict=True))
    plan = repeated(lengths, copies, seq_len, packing, seed)
    rows, begun = read(plan)
    tokens = np.concatenate(rows)
    counts = np.bincount(tokens[tokens >= 0], minlength=sum(lengths))
    assert np.array_equal(counts, np.repeat(copies, lengths))
    again = repeated(lengths, copies, seq_len, packing, seed)
    assert np.array_equal(again.starts, plan.starts) and np.array_equal(again.slots, plan.slots)
    if packing == "best_fit":
        sizes = pieces(np.repeat(lengths, copies), seq_len)[2]
        most = np.zeros(seq_len + 1, np.int64)
        for length, count in drawn:
            np.maximum.at(most, pieces(np.array([length]), seq_len)[2], count)
        histogram = np.bincount(sizes, minlength=seq_len + 1)
        fewest = rows_needed(histogram, seq_len)
        assert plan.rows == rows_needed(histogram, seq_len, most)
        assert plan.rows <= fewest + max(1, fewest // 10)
        assert sum(map(len, begun)) == len(sizes), "only what is longer than a row is cut"


@pytest.mark.parametrize("packing", ["none", "concat", "best_fit"])
@given(
    sizes=st.lists(st.integers(1, 30), min_size=40, max_size=80),
    weights=st.lists(st.integers(1, 5), min_size=2, max_size=2),
    seq_len=st.integers(30, 60),
    seed=st.integers(0, 3),
)
def test_no_row_holds_a_document_twice(
    packing: Packing, sizes: list[int], weights: list[int], seq_len: int, seed: int
) -> None:
    """Two sources of other weights, of whose documents one copy of each would fill some rows."""
    copies = [weights[number % 2] for number in range(len(sizes))]
    tokens = sum(size * count for size, count in zip(sizes, copies, strict=True))
    assume(tokens / max(weights) > 3 * (seq_len + max(sizes)))
    assert sharing(repeated(sizes, copies, seq_len, packing, seed)) == 0


@pytest.mark.parametrize("packing", ["none", "concat", "best_fit"])
@pytest.mark.parametrize(
    ("documents", "median", "copies", "seq_len", "fill"),
    [
        (300, 300, 3, 2048, 0.98),
        (300, 100, 3, 512, 0.98),
        (40, 300, 2, 512, 0.94),
        # few and short, which fill rows evenly
        (20, 50, 100, 512, 0.94),
        (80, 7, 4, 64, 0.94),
        (20_000, 400, 2, 2048, 0.999),
    ],
)
def test_copies_have_rows_of_their_own(
    packing: Packing, documents: int, median: int, copies: int, seq_len: int, fill: float
) -> None:
    rng = np.random.default_rng(2)
    lengths = (np.exp(rng.normal(np.log(median), 0.8, documents)).astype(np.int64) + 2).tolist()
    plan = repeated(lengths, [copies] * documents, seq_len, packing)
    first, last = plan.slots // seq_len, (plan.slots + plan.lengths - 1) // seq_len
    order = np.lexsort((first, plan.starts))
    alike = np.diff(plan.starts[order]) == 0
    assert np.count_nonzero(alike) >= (copies - 1) * documents
    gaps = (first[order][1:] - last[order][:-1])[alike]
    assert gaps.min() > 0, "no two share a row"
    if packing != "none":
        assert plan.rows * seq_len * fill <= copies * sum(lengths)
    # over the epoch: as far from each other as places drawn at random are
    drawn = np.sort(rng.random((documents, copies)), axis=1)
    close = float(np.mean(np.diff(drawn, axis=1) < 0.25 / copies))
    assert np.mean(gaps < 0.25 / copies * plan.rows) < close + 0.05
    if packing != "best_fit":
        assert gaps.min() > 0.1 / copies * plan.rows
    second = repeated(lengths, [copies] * documents, seq_len, packing, seed=1)
    assert not np.array_equal(second.starts, plan.starts)


def test_copies_that_outnumber_the_rows_share_them_evenly() -> None:
    plan = repeated([50] * 3 + [20] * 10, [40] * 13, 1000, "best_fit")
    rows, _ = read(plan)
    assert plan.rows <= 1.1 * (14_000 / 1000) + 1
    for number in (0, 3):
        first = 50 * min(number, 3) + 20 * max(number - 3, 0)
        held = [int(np.count_nonzero(row == first)) for row in rows]
        assert sum(held) == 40 and max(held) <= 6, "three in a row at the best"


@pytest.mark.parametrize("packing", ["none", "concat", "best_fit"])
def test_a_plan_without_documents_has_no_rows(tmp_path: Path, packing: Packing) -> None:
    planned([], 8, packing).save(tmp_path)
    assert Plan.open(tmp_path, 8).rows == 0
