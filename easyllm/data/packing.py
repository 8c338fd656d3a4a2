"""How documents lie in rows: a plan made from their lengths alone; nothing here reads a token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from easyllm.data.shards import Int64

Packing = Literal["none", "concat", "best_fit"]


@dataclass(frozen=True)
class Plan:
    """Pieces of documents laid into rows of ``seq_len`` slots.

    The slots of all rows are one stream. Piece ``i`` fills ``lengths[i]`` of them from slot
    ``slots[i]`` on with the tokens from place ``starts[i]`` of the store on; slots that no
    piece fills are padding. With ``best_fit`` a document longer than a row is cut into pieces
    of a row and a rest, and no piece crosses rows. Otherwise a piece is a whole document,
    which rows may cut.
    """

    starts: Int64
    lengths: Int64
    slots: Int64
    """Ascending."""
    seq_len: int

    @classmethod
    def of(
        cls, starts: Int64, lengths: Int64, seq_len: int, packing: Packing, rng: np.random.Generator
    ) -> Plan:
        """A plan of documents in this order.

        ``starts`` and ``lengths`` [documents] are in tokens. ``rng`` draws the order of the
        rows, which ``best_fit`` fills from the longest piece down.
        """
        if packing == "best_fit":
            return cls(*_best_fit(starts, lengths, seq_len, rng), seq_len)
        taken = slots_taken(lengths, seq_len, packing)
        return cls(starts, lengths, np.cumsum(taken) - taken, seq_len)

    @property
    def rows(self) -> int:
        end = int(self.slots[-1] + self.lengths[-1]) if len(self.slots) else 0
        return -(-end // self.seq_len)

    def row(self, row: int) -> list[tuple[int, int, int]]:
        """The pieces of a row, left to right: the place of each one's first token in the store,
        its first slot in the row, and its tokens."""
        start, end = row * self.seq_len, (row + 1) * self.seq_len
        first = max(int(np.searchsorted(self.slots, start, "right")) - 1, 0)
        until = int(np.searchsorted(self.slots, end, "left"))
        # a few plain numbers are faster than numpy's calls over as many
        found = []
        for place, slot, length in zip(
            self.starts[first:until].tolist(),
            self.slots[first:until].tolist(),
            self.lengths[first:until].tolist(),
            strict=True,
        ):
            skipped = max(start - slot, 0)
            tokens = min(length, end - slot) - skipped
            if tokens > 0:
                found.append((place + skipped, slot + skipped - start, tokens))
        return found

    @property
    def bytes(self) -> int:
        """What a saved plan takes on the disk, about."""
        return self.starts.nbytes + self.lengths.nbytes + self.slots.nbytes + 1000

    def save(self, folder: Path) -> None:
        for name in ("starts", "lengths", "slots"):
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def open(cls, folder: Path, seq_len: int) -> Plan:
        """A saved plan, mapped: processes of a node share its pages."""
        starts, lengths, slots = (
            np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
            for name in ("starts", "lengths", "slots")
        )
        return cls(starts, lengths, slots, seq_len)


def slots_taken(lengths: Int64, seq_len: int, packing: Packing) -> Int64:
    """Slots that documents take up where each is laid down after the one before it."""
    return -(-lengths // seq_len) * seq_len if packing == "none" else lengths


def rows_needed(histogram: Int64, seq_len: int) -> int:
    """Rows that ``best_fit`` makes of ``histogram[n]`` pieces of ``n`` tokens each."""
    return max((fit.row + -(-fit.pieces // fit.per_row) for fit in _fits(histogram, seq_len)),
               default=0)  # fmt: skip


def pieces(lengths: Int64, seq_len: int) -> tuple[Int64, Int64, Int64]:
    """Documents cut into pieces no longer than a row: each piece's document, its first token
    within that, and its length."""
    counts = -(-lengths // seq_len)
    documents = np.repeat(np.arange(len(lengths)), counts)
    begins = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
    begins *= seq_len
    return documents, begins, np.minimum(lengths[documents] - begins, seq_len)


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


def _fits(histogram: Int64, seq_len: int) -> Iterator[_Fit]:
    """Best-fit decreasing: the longest piece first, each into the fullest row that holds it.

    Once a piece has gone into a row, that row is the fullest that can hold another as long,
    until it cannot. So rows with equally many free slots take all the pieces of a length that
    they can hold at once, and the work grows with the number of different lengths, not with
    the number of pieces.
    """
    rows = 0
    free: list[list[tuple[int, int]]] = [[] for _ in range(seq_len + 1)]
    """By free slots: runs of consecutive rows, as the first and the number of rows."""
    some = 1 << seq_len
    """Bit n is set where ``free[n]`` holds a run; an empty row can always be had."""
    for length in np.flatnonzero(histogram)[::-1].tolist():
        left = int(histogram[length])
        while left:
            wide_enough = some >> length
            room = length + (wide_enough & -wide_enough).bit_length() - 1
            per_row = room // length
            if room == seq_len:
                row, count = rows, -(-left // per_row)
                rows += count
            else:
                row, count = free[room].pop()
            put = min(left, count * per_row)
            yield _Fit(length, put, per_row, row, seq_len - room)
            left -= put
            full, rest = divmod(put, per_row)
            for first, many, held in (
                (row, full, per_row),
                (row + full, int(rest > 0), rest),
                (row + full + (rest > 0), count - full - (rest > 0), 0),
            ):
                if many and (still := room - held * length):
                    free[still].append((first, many))
                    some |= 1 << still
            if room < seq_len and not free[room]:
                some &= ~(1 << room)


def _best_fit(
    starts: Int64, lengths: Int64, seq_len: int, rng: np.random.Generator
) -> tuple[Int64, Int64, Int64]:
    """Starts, lengths and slots of the pieces of documents."""
    documents, begins, sizes = pieces(lengths, seq_len)
    fits = list(_fits(np.bincount(sizes, minlength=seq_len + 1), seq_len))
    if not fits:
        nothing = np.zeros(0, np.int64)
        return nothing, nothing, nothing
    # numpy sorts 16-bit keys by radix, many times faster than wider ones
    key = seq_len - sizes
    order = np.argsort(key.astype(np.uint16) if seq_len < 1 << 16 else key, kind="stable")
    length, put, per_row, row, slot = np.array(fits, np.int64).T
    at = np.arange(len(sizes)) - np.repeat(np.cumsum(put) - put, put)
    nth_row, nth = np.divmod(at, np.repeat(per_row, put))
    nth_row += np.repeat(row, put)
    place = rng.permutation(int(nth_row.max()) + 1)
    slots = place[nth_row] * seq_len + np.repeat(slot, put) + nth * np.repeat(length, put)
    by_slot = np.argsort(slots)
    order, slots = order[by_slot], slots[by_slot]
    return (starts[documents] + begins)[order], sizes[order], slots
