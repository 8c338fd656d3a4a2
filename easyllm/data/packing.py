"""Which documents an epoch holds, in what order, and how they lie in rows.

All of it follows from the documents' lengths: nothing here reads a token.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from easyllm.data.random import generator
from easyllm.data.shards import Int64, gather

Packing = Literal["none", "concat"]


@dataclass(frozen=True)
class Plan:
    """Documents laid into rows of ``seq_len`` slots.

    Document ``order[i]`` begins at slot ``slots[i]`` of the stream of all rows; the slots
    between its end and the next document's begin are padding, as are those after the last.
    """

    order: Int64
    slots: Int64
    """[documents + 1]; the last is where the stream ends."""
    seq_len: int

    @classmethod
    def of(cls, order: Int64, lengths: Int64, seq_len: int, packing: Packing) -> Plan:
        """``lengths`` are those of all documents, in tokens."""
        _, slots = _slots(lengths[order], seq_len, packing)
        return cls(order, slots, seq_len)

    @property
    def rows(self) -> int:
        return -(-int(self.slots[-1]) // self.seq_len)

    def row(self, row: int, offsets: Int64) -> tuple[Int64, Int64]:
        """For each token of a row, its place in the store and its slot in the row.

        ``offsets`` [documents + 1] are those of the documents in the store.
        """
        start, end = row * self.seq_len, (row + 1) * self.seq_len
        first = int(np.searchsorted(self.slots, start, "right")) - 1
        until = min(int(np.searchsorted(self.slots, end, "left")), len(self.order))
        documents, slots = self.order[first:until], self.slots[first:until]
        lengths = offsets[documents + 1] - offsets[documents]
        skipped = np.maximum(start - slots, 0)
        counts = np.maximum(np.minimum(slots + lengths, end) - slots - skipped, 0)
        places, _ = gather(offsets[documents] + skipped, counts)
        targets, _ = gather(slots + skipped - start, counts)
        return places, targets


def _slots(lengths: Int64, seq_len: int, packing: Packing) -> tuple[Int64, Int64]:
    """Slots that documents take, and where each begins with the end of all."""
    taken = -(-lengths // seq_len) * seq_len if packing == "none" else lengths
    begins = np.zeros(len(taken) + 1, np.int64)
    np.cumsum(taken, out=begins[1:])
    return taken, begins


@dataclass(frozen=True)
class Part:
    """A source's training documents and how often an epoch holds each."""

    name: str
    documents: Int64
    weight: float

    def chosen(self, epoch: int, seed: int) -> Int64:
        """The documents of an epoch, those it holds twice named twice, in no useful order.

        A fractional weight goes through a random order of all documents, epoch by epoch,
        and draws a new one at its end: with 0.5 two epochs see every document once.
        """
        whole = int(self.weight)
        share = self.weight - whole
        chosen = [np.tile(self.documents, whole)]
        at, until = (math.floor((epoch + e) * share * len(self.documents)) for e in (0, 1))
        while at < until:
            turn, begin = divmod(at, len(self.documents))
            end = min(begin + until - at, len(self.documents))
            order = generator(seed, "weight", self.name, turn).permutation(self.documents)
            chosen.append(order[begin:end])
            at += end - begin
        return np.concatenate(chosen)


class Epochs:
    """The endless sequence of training rows, by index."""

    def __init__(
        self, parts: Sequence[Part], lengths: Int64, seq_len: int, packing: Packing, seed: int
    ):
        self.parts = [part for part in parts if len(part.documents)]
        self.lengths = lengths
        self.seq_len = seq_len
        self.packing = packing
        self.seed = seed
        taken, _ = _slots(lengths, seq_len, packing)
        slots = sum(part.weight * int(taken[part.documents].sum()) for part in self.parts)
        self.per_epoch = math.ceil(slots / seq_len)
        """Rows of an epoch; the mean where a weight is fractional and epochs differ."""
        self._even = all(part.weight == int(part.weight) for part in self.parts)
        self._ends: list[int] = []
        # an instance's own caches: training reads one epoch, evaluation may look back
        self.plan = functools.lru_cache(maxsize=2)(self._plan)

    def locate(self, index: int) -> tuple[int, int]:
        """The epoch of the row with this index (from 0), and its number within it."""
        if self._even:
            return divmod(index, self.per_epoch)
        while not self._ends or self._ends[-1] <= index:
            before = self._ends[-1] if self._ends else 0
            self._ends.append(before + self.plan(len(self._ends)).rows)
        epoch = bisect.bisect_right(self._ends, index)
        return epoch, index - (self._ends[epoch - 1] if epoch else 0)

    def _plan(self, epoch: int) -> Plan:
        documents = np.concatenate([part.chosen(epoch, self.seed) for part in self.parts])
        order = generator(self.seed, "epoch", epoch).permutation(documents)
        return Plan.of(order, self.lengths, self.seq_len, self.packing)
