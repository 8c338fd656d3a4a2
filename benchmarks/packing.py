"""Best-fit packing of many documents, against Python sorting their lengths.

The lengths are drawn from a mixture with the shape of real corpora: conversations of some tens
of tokens, articles of some hundreds, manuals and books of thousands, the longest many rows
long. Both sides start from arrays in memory; ours ends with the plan of an epoch, theirs with
the sorted list of (length, index). They run in turn, PAIRS times; a ratio is the median of the
pairs' ratios. The last line is one JSON object: the lowest fill and the highest ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import numpy as np

from easyllm.data.dataset.packing import Plan

FILL, OVER_SORT = 0.999, 6.0
"""Limits: at least, at most."""

SHAPES = ((0.35, 45, 0.7), (0.55, 420, 1.1), (0.10, 4000, 0.9))
"""Share, median and spread of the logarithm, of documents of a kind."""


def lengths(documents: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drawn = [
        np.exp(rng.normal(np.log(median), spread, round(share * documents)))
        for share, median, spread in SHAPES
    ]
    return rng.permutation(np.concatenate(drawn).astype(np.int64) + 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=300_000)
    parser.add_argument("--pairs", type=int, default=9)
    asked = parser.parse_args()
    sizes = lengths(asked.documents, seed=0)
    starts, listed = np.cumsum(sizes) - sizes, sizes.tolist()
    print(
        f"{len(sizes):,} documents, {sizes.sum() / 1e6:,.0f} M tokens, the longest {sizes.max():,}"
    )
    head = f"{'seq_len':>8} {'rows':>8} {'fill':>9} {'plan':>9} {'sort':>9} {'ratio':>6}"
    print(f"{head}  lowest–highest")
    fills, ratios = [], []
    for seq_len in (2048, 4096, 8192):
        ours, theirs = [], []
        for pair in range(asked.pairs):
            pairs = [(length, index) for index, length in enumerate(listed)]
            begin = time.perf_counter()
            pairs.sort()
            theirs.append(time.perf_counter() - begin)
            del pairs
            rng = np.random.default_rng(pair)
            begin = time.perf_counter()
            plan = Plan.of(starts, sizes, seq_len, "best_fit", rng)
            ours.append(time.perf_counter() - begin)
        found = [a / b for a, b in zip(ours, theirs, strict=True)]
        fills.append(float(sizes.sum() / (plan.rows * seq_len)))
        ratios.append(statistics.median(found))
        print(
            f"{seq_len:8} {plan.rows:8,} {fills[-1]:9.4%} {statistics.median(ours):8.3f}s "
            f"{statistics.median(theirs):8.3f}s {ratios[-1]:6.2f}  "
            f"{min(found):.2f}–{max(found):.2f}"
        )
    result = {
        "fill": round(min(fills), 6),
        "over_sort": round(max(ratios), 3),
        "documents": len(sizes),
        "fill_limit": FILL,
        "over_sort_limit": OVER_SORT,
    }
    print(json.dumps(result))
    return int(result["fill"] < FILL or result["over_sort"] > OVER_SORT)


if __name__ == "__main__":
    sys.exit(main())
