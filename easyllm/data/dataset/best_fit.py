"""Best-fit decreasing: places pieces of documents in rows, the longest first."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from easyllm.data.dataset import copies
from easyllm.data.store.shards import Int64

MORE = (40, 20, 10)
"""To keep copies out of the same row, one row more is allowed, or one more for each so many rows;
the smallest number that suffices is taken."""


class _Fit(NamedTuple):
    """Pieces of one length put into consecutive rows, the same number into each; into the
    last of them perhaps fewer."""

    length: int
    pieces: int
    per_row: int
    row: int
    """The first of the rows."""
    slot: int
    """The first free slot of each."""


def rows_needed(histogram: Int64, seq_len: int, most: Int64 | None = None) -> int:
    """Rows that ``best_fit`` makes of ``histogram[n]`` pieces of ``n`` tokens each, none of which
    occurs more than ``most[n]`` times."""
    return _rows(_laid(histogram, seq_len, most))


def pieces(lengths: Int64, seq_len: int) -> tuple[Int64, Int64, Int64]:
    """Documents cut into pieces no longer than a row: each piece's document, its first token
    within that, and its length."""
    counts = -(-lengths // seq_len)
    documents = np.repeat(np.arange(len(lengths)), counts)
    begins = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
    begins *= seq_len
    return documents, begins, np.minimum(lengths[documents] - begins, seq_len)


def best_fit(
    starts: Int64, lengths: Int64, seq_len: int, rng: np.random.Generator, repeated: bool
) -> tuple[Int64, Int64, Int64]:
    """Starts, lengths and slots of the pieces of documents, some of them ``repeated``."""
    documents, begins, sizes = pieces(lengths, seq_len)
    places = starts[documents] + begins
    most = copies.most_copies(places, sizes, seq_len) if repeated else None
    fits = _laid(np.bincount(sizes, minlength=seq_len + 1), seq_len, most)
    if not fits:
        nothing = np.zeros(0, np.int64)
        return nothing, nothing, nothing
    if repeated:
        order = copies.by_size(places, sizes, rng)
    else:
        # numpy sorts 16-bit keys by radix, many times faster than wider ones
        key = seq_len - sizes
        order = np.argsort(key.astype(np.uint16) if seq_len < 1 << 16 else key, kind="stable")
    length, put, per_row, row, slot = np.array(fits, np.int64).T
    at = np.arange(len(sizes)) - np.repeat(np.cumsum(put) - put, put)
    rows, nth = np.divmod(at, np.repeat(per_row, put))
    rows += np.repeat(row, put)
    slots = np.repeat(slot, put) + nth * np.repeat(length, put)
    if repeated:  # a row is placed where its first and longest piece is
        first = np.flatnonzero(slots == 0)
        drawn = copies.positions(places, rng)[order[first]]
        place = np.empty(len(first), np.int64)
        place[rows[first][np.argsort(drawn, kind="stable")]] = np.arange(len(first))
    else:
        place = rng.permutation(int(rows.max()) + 1)
    slots += place[rows] * seq_len
    by_slot = np.argsort(slots)
    order, slots = order[by_slot], slots[by_slot]
    return places[order], sizes[order], slots


def _laid(histogram: Int64, seq_len: int, most: Int64 | None) -> list[_Fit]:
    """How pieces are laid into rows, the copies of each into different rows where a few more rows
    suffice for that."""
    plain = _fits(histogram, seq_len)
    if most is None or most.max() <= 1:
        return plain
    rows = _rows(plain)
    allowed = [rows + max(1, rows // each) for each in MORE]
    # so many consecutive pieces are of different items, as copies are ordered
    limits = np.maximum(histogram // np.maximum(most, 1), 1)
    while True:
        for count in allowed:
            # at least so many must share a row
            at_most = np.maximum(limits, -(-histogram // count))
            fits = _fits(histogram, seq_len, at_most)
            if _rows(fits) <= count:
                return fits
            # a few short documents, many times over: where the fullest row is filled first, their
            # copies run out of rows
            fewest = np.minimum(at_most, -(-histogram // count))
            if fits := _fits(histogram, seq_len, fewest, count):
                return fits
        limits *= 2  # in the end there is no limit, and these are the plain ones


def _rows(fits: list[_Fit]) -> int:
    return max((fit.row + -(-fit.pieces // fit.per_row) for fit in fits), default=0)


def _fits(histogram: Int64, seq_len: int, limits: Int64 | None = None, even: int = 0) -> list[_Fit]:
    """Best-fit decreasing: the longest piece first, each into the fullest row that holds it.

    Once a piece has gone into a row, that row is the fullest that can hold another as long,
    until it cannot. So rows with equally many free slots take all the pieces of a length that
    they can hold at once, or that ``limits[length]`` allows, and the work grows with the number
    of different lengths, not with the number of pieces. A row takes pieces of a length only
    once.

    With ``even`` there are so many rows, and each piece goes into the emptiest; the result is
    empty where they do not hold all.
    """
    fits: list[_Fit] = []
    rows = even
    free: list[list[tuple[int, int]]] = [[] for _ in range(seq_len + 1)]
    """By free slots: runs of consecutive rows, as the first and the number of rows."""
    if even:
        free[seq_len].append((0, even))
    some = 1 << seq_len
    """Bit n is set where ``free[n]`` holds a run; the number of empty rows is not limited."""
    for length in np.flatnonzero(histogram)[::-1].tolist():
        left = int(histogram[length])
        limit = seq_len if limits is None else int(limits[length])
        taken: list[tuple[int, int, int]] = []
        """Free slots, first and number of rows that could hold more pieces of this length and
        may not."""
        while left:
            if even:
                room = some.bit_length() - 1
                if room < length:
                    return []
            else:
                wide_enough = some >> length
                room = length + (wide_enough & -wide_enough).bit_length() - 1
            per_row = min(room // length, limit)
            if room == seq_len and not even:
                row, count = rows, -(-left // per_row)
                rows += count
            else:
                row, count = free[room].pop()
            put = min(left, count * per_row)
            fits.append(_Fit(length, put, per_row, row, seq_len - room))
            left -= put
            full, rest = divmod(put, per_row)
            for first, many, held in (
                (row, full, per_row),
                (row + full, int(rest > 0), rest),
                (row + full + (rest > 0), count - full - (rest > 0), 0),
            ):
                still = room - held * length
                if many and held and still >= length:
                    taken.append((still, first, many))
                elif many and still:
                    free[still].append((first, many))
                    some |= 1 << still
            if not free[room] and (even or room < seq_len):
                some &= ~(1 << room)
        for still, first, many in taken:
            free[still].append((first, many))
            some |= 1 << still
    return fits
