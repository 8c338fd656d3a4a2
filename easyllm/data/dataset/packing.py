"""How documents are placed in rows: a plan made from their lengths only, without their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from easyllm.data.dataset import copies
from easyllm.data.dataset.best_fit import best_fit
from easyllm.data.store import block_hashes
from easyllm.data.store.shards import Int64

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
        cls,
        starts: Int64,
        lengths: Int64,
        seq_len: int,
        packing: Packing,
        rng: np.random.Generator,
        repeated: bool = False,
    ) -> Plan:
        """A plan of documents that are in random order.

        ``starts`` and ``lengths`` [documents] are in tokens. Where some are ``repeated``, an
        order is drawn in which the copies of each have a distance and as few rows as possible
        hold two of them; ``best_fit`` takes at most a row, or a tenth of all rows, more for
        it. ``rng`` also draws the order of the rows that ``best_fit`` fills from the longest
        piece down.
        """
        if packing == "best_fit":
            return cls(*best_fit(starts, lengths, seq_len, rng, repeated), seq_len)
        taken = slots_taken(lengths, seq_len, packing)
        if repeated:
            order = copies.in_order(starts, taken, seq_len, rng, cut=packing == "concat")
            starts, lengths, taken = starts[order], lengths[order], taken[order]
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
        """About how many bytes a saved plan takes on the disk."""
        return self.starts.nbytes + self.lengths.nbytes + self.slots.nbytes + 1000

    def save(self, folder: Path) -> None:
        for name in ("starts", "lengths", "slots"):
            np.save(folder / f"{name}.npy", getattr(self, name))
            block_hashes.write(folder / f"{name}.npy")

    @classmethod
    def open(cls, folder: Path, seq_len: int) -> Plan:
        """A saved plan, mapped: processes of a node share its pages. Raises UserError where it is
        not what was saved."""

        def mapped(name: str) -> Int64:
            block_hashes.Blocks(folder / f"{name}.npy").check_all()
            return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))

        return cls(mapped("starts"), mapped("lengths"), mapped("slots"), seq_len)


def slots_taken(lengths: Int64, seq_len: int, packing: Packing) -> Int64:
    """Slots that documents take up where each is laid down after the one before it."""
    return -(-lengths // seq_len) * seq_len if packing == "none" else lengths
