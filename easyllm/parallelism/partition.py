"""Which consecutive layers each pipeline stage holds. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def bounds(weights: Sequence[float], decoders: Sequence[bool], stages: int) -> list[int]:
    """Where the stages begin: ``stages + 1`` ascending indices from 0 to ``len(weights)``.

    Every stage holds a decoder layer, the heaviest is as light as can be and, among equals,
    the rest are as even as can be. Raises ValueError with fewer decoder layers than stages.
    """
    if sum(decoders) < stages:
        raise ValueError(f"{sum(decoders)} decoder layers cannot make {stages} stages")
    total = [0.0, *accumulate(weights)]
    layers = [0, *accumulate(map(int, decoders))]
    count = len(weights)
    # best[end]: heaviest stage, sum of squares and bounds of splitting the first `end` layers
    best: list[tuple[float, float, list[int]] | None] = [(0.0, 0.0, [0]), *[None] * count]
    for _ in range(stages):
        following: list[tuple[float, float, list[int]] | None] = [None] * (count + 1)
        for end in range(1, count + 1):
            for begin in range(end):
                known = best[begin]
                if known is None or layers[end] == layers[begin]:
                    continue
                load = total[end] - total[begin]
                split = (max(known[0], load), known[1] + load * load, [*known[2], end])
                current = following[end]
                following[end] = split if current is None else min(current, split)
        best = following
    found = best[count]
    assert found is not None
    return found[2]
