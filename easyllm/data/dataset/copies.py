"""Documents that an epoch holds more than once: their copies are spread over different rows.

An item is a document, or a piece of one; it is identified by the place of its first token.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from easyllm.data.store.shards import Int64

Float64 = npt.NDArray[np.float64]

LOOSE = (0.5, 0.25, 0.0, 0.0)
"""How far copies may deviate from an even distance, as a share of that distance, in each of the
orders that are tried."""


def positions(items: Int64, rng: np.random.Generator, loose: float = LOOSE[0]) -> Float64:
    """Where in an epoch each of ``items`` [entries] is, from 0 to below 1.

    Each position is uniformly distributed. Two copies of an item that occurs ``n`` times have a
    distance of at least ``(1 - loose) / n``, where the end of the epoch counts as its beginning.
    """
    _, inverse, counts = np.unique(items, return_inverse=True, return_counts=True)
    nth = np.empty(len(items), np.int64)
    nth[np.argsort(inverse, kind="stable")] = _within(counts)
    begin = rng.random(len(counts))[inverse]
    moved = loose * rng.random(len(items))
    return np.asarray(((nth + moved) / counts[inverse] + begin) % 1.0)


def in_order(
    items: Int64, lengths: Int64, seq_len: int, rng: np.random.Generator, cut: bool
) -> Int64:
    """An order of entries that are laid end to end, with distance between copies of an item.

    Where rows ``cut`` entries, a few orders are tried, and the one is taken in which the fewest
    copies share a row with another.
    """
    best, fewest = np.zeros(0, np.int64), len(items) + 1
    for loose in LOOSE:
        order = np.argsort(positions(items, rng, loose), kind="stable")
        shared = _sharing(items[order], lengths[order], seq_len) if cut else 0
        if shared < fewest:
            best, fewest = order, shared
        if not shared:
            break
    return best


def _sharing(items: Int64, lengths: Int64, seq_len: int) -> int:
    """Number of copies that begin in the row in which the copy before them ends, in this order."""
    ends = np.cumsum(lengths)
    first, last = (ends - lengths) // seq_len, (ends - 1) // seq_len
    order = np.argsort(items, kind="stable")
    items, first, last = items[order], first[order], last[order]
    return int(np.count_nonzero((items[1:] == items[:-1]) & (first[1:] <= last[:-1])))


def most_copies(items: Int64, sizes: Int64, seq_len: int) -> Int64:
    """How often the most frequent item occurs, by size in tokens: [seq_len + 1]."""
    _, inverse, counts = np.unique(items, return_inverse=True, return_counts=True)
    most = np.zeros(seq_len + 1, np.int64)
    np.maximum.at(most, sizes, counts[inverse])
    return most


def by_size(items: Int64, sizes: Int64, rng: np.random.Generator) -> Int64:
    """An order of entries from the largest size down, with distance between copies of an item.

    Among ``n`` entries of a size, where no item has more than ``m``, any ``n // m`` consecutive
    ones are of different items. For this, each item's copies are written down the columns of a
    table of ``m`` lines, items with the most copies first, and the table is read line by line.
    """
    _, inverse, counts = np.unique(items, return_inverse=True, return_counts=True)
    drawn = rng.permutation(len(counts))[inverse]
    order = np.lexsort((drawn, -counts[inverse], -sizes))
    _, begins, alike = np.unique(-sizes[order], return_index=True, return_counts=True)
    column, line = np.divmod(_within(alike), np.repeat(counts[inverse][order][begins], alike))
    # the first lines hold one more where the copies do not fill the table
    width, longer = np.divmod(alike, counts[inverse][order][begins])
    place = line * np.repeat(width, alike) + np.minimum(line, np.repeat(longer, alike)) + column
    found = np.empty(len(order), np.int64)
    found[np.repeat(begins, alike) + place] = order
    return found


def _within(counts: Int64) -> Int64:
    """0, 1, … for each group of ``counts`` entries, group after group."""
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)
