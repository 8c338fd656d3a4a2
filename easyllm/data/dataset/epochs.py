"""Which documents are trained, which are held out, and the endless sequence of training rows."""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from easyllm.data.dataset.best_fit import pieces, rows_needed
from easyllm.data.dataset.packing import Packing, Plan, slots_taken
from easyllm.data.dataset.split_conversations import LongConversations, longer_than, pieces_of
from easyllm.data.random import generator
from easyllm.data.store.shards import Bool, Int64, UInt64, mix
from easyllm.data.store.token_cache import Cache
from easyllm.errors import UserError


@dataclass(frozen=True)
class WeightedSource:
    """A source's training documents and how often an epoch holds each."""

    name: str
    documents: Int64
    weight: float

    def chosen(self, epoch: int, seed: int) -> Int64:
        """The documents of an epoch in no particular order; one that it holds twice is given twice.

        A fractional weight goes through a random order of all documents, epoch by epoch,
        and draws a new one at its end: with 0.5 two epochs see every document once.
        """
        weight = Fraction(str(self.weight))  # 0.29 of 100 are 29, and in binary numbers 28
        whole = int(weight)
        share = weight - whole
        chosen = [np.tile(self.documents, whole)]
        at, until = (math.floor((epoch + e) * share * len(self.documents)) for e in (0, 1))
        while at < until:
            turn, begin = divmod(at, len(self.documents))
            end = min(begin + until - at, len(self.documents))
            order = generator(seed, "weight", self.name, turn).permutation(self.documents)
            chosen.append(order[begin:end])
            at += end - begin
        return np.concatenate(chosen)


class Split:
    """The documents of a store, divided into those that are trained and those held out.

    Holds a few numbers a document; only the process that plans rows needs it.
    """

    def __init__(
        self,
        cache: Cache,
        weights: Mapping[str, float],
        fraction: float,
        seed: int,
        seq_len: int,
        long_conversations: LongConversations,
    ):
        """Raises UserError where a fraction is asked for and nothing can be held out."""
        self.starts, self.lengths = cache.offsets[:-1], np.diff(cache.offsets)
        self.seed, self.seq_len = seed, seq_len
        long = longer_than(cache, seq_len)
        # once for each way of packing: finding the turns reads the long conversations
        self._pieces = functools.cache(
            lambda packing: pieces_of(cache, long, seq_len, packing, long_conversations)
        )
        self.parts: list[WeightedSource] = []
        self.counts: dict[str, dict[str, Any]] = {}
        """By source: documents and tokens, held-out ones, conversations longer than a row, the
        tokens of those that training drops, weight."""
        held_out = []
        for name, (first, end) in cache.sources.items():
            held, order = _held_out(cache.hashes[first:end], fraction, seed, name)
            self.parts.append(WeightedSource(name, first + np.flatnonzero(~held), weights[name]))
            held_out.append(first + order)
            trained = long[name][~held[long[name] - first]]
            dropped = trained if long_conversations == "drop" else trained[:0]
            self.counts[name] = {
                "documents": end - first,
                "tokens": int(self.lengths[first:end].sum()),
                "long_conversations": len(long[name]),
                "dropped_tokens": int(self.lengths[dropped].sum()),
                "heldout_documents": len(order),
                "heldout_tokens": int(self.lengths[held_out[-1]].sum()),
                "weight": weights[name],
            }
        self.held_out = np.concatenate(held_out)
        if fraction and not len(self.held_out):
            raise UserError(
                f"training.evaluate.fraction={fraction:g} holds nothing out: no source has two "
                "different documents; give training.evaluate.fraction=0 or more documents"
            )

    def per_epoch(self, packing: Packing) -> int:
        """Rows of an epoch; about the mean where a weight is fractional and epochs differ."""
        if packing == "best_fit":
            # a fraction of a document cannot be placed, so a thousand epochs are counted
            epochs = 1 if are_whole(part.weight for part in self.parts) else 1000
            histogram, most = np.zeros((2, self.seq_len + 1), np.int64)
            for part in self.parts:
                _, _, sizes = pieces(self._read(part.documents, packing)[1], self.seq_len)
                found = np.bincount(sizes, minlength=self.seq_len + 1)
                histogram += np.rint(part.weight * epochs * found).astype(np.int64)
                most = np.maximum(most, np.where(found, epochs * math.ceil(part.weight), 0))
            repeated = any(part.weight > 1 for part in self.parts)
            rows = rows_needed(histogram, self.seq_len, most if repeated else None)
            return math.ceil(rows / epochs)
        slots = 0.0
        for part in self.parts:
            _, lengths = self._read(part.documents, packing)
            slots += part.weight * int(slots_taken(lengths, self.seq_len, packing).sum())
        return math.ceil(slots / self.seq_len)

    def epoch(self, number: int, packing: Packing) -> Plan:
        """The rows of an epoch's training documents."""
        chosen = np.concatenate([part.chosen(number, self.seed) for part in self.parts])
        order = generator(self.seed, "epoch", number).permutation(chosen)
        repeated = bool(np.bincount(chosen, minlength=1).max() > 1)
        return self._plan(order, packing, "rows", number, repeated=repeated)

    def evaluation(self, packing: Packing) -> Plan:
        """The rows of the held-out documents."""
        return self._plan(self.held_out, packing, "heldout rows")

    def _plan(
        self, order: Int64, packing: Packing, *what: str | int, repeated: bool = False
    ) -> Plan:
        rng = generator(self.seed, *what)
        return Plan.of(*self._read(order, packing), self.seq_len, packing, rng, repeated)

    def _read(self, documents: Int64, packing: Packing) -> tuple[Int64, Int64]:
        """Starts and lengths of what is read of documents, in their order."""
        cut = self._pieces(packing)
        return cut.of(documents) if cut else (self.starts[documents], self.lengths[documents])


class Epochs:
    """The endless sequence of training rows, by index."""

    def __init__(self, plan: Callable[[int], Plan], per_epoch: int, weights: Iterable[float]):
        """``plan`` gives the rows of an epoch; ``per_epoch`` is their number, exact where all
        weights are whole."""
        # an instance's own cache: training reads one epoch, evaluation may look back
        self.plan = functools.lru_cache(maxsize=2)(plan)
        self.per_epoch = per_epoch
        self._even = are_whole(weights)
        self._ends: list[int] = []

    def locate(self, index: int) -> tuple[int, int]:
        """The epoch of the row with this index (from 0), and its number within it."""
        if self._even:
            return divmod(index, self.per_epoch)
        while not self._ends or self._ends[-1] <= index:
            before = self._ends[-1] if self._ends else 0
            self._ends.append(before + self.plan(len(self._ends)).rows)
        epoch = bisect.bisect_right(self._ends, index)
        return epoch, index - (self._ends[epoch - 1] if epoch else 0)


def are_whole(weights: Iterable[float]) -> bool:
    """Whether every epoch holds the same documents."""
    return all(weight == int(weight) for weight in weights)


def _held_out(hashes: UInt64, fraction: float, seed: int, source: str) -> tuple[Bool, Int64]:
    """Which documents of a source are held out, as a mask and as places in a fixed order.

    The choice is by content: neither shuffling nor partitioning changes it, and documents
    that are alike stay on one side. At least one is held out, never all.
    """
    key = generator(seed, "heldout", source).integers(1 << 64, dtype=np.uint64)
    drawn = mix(hashes ^ key)
    held = np.zeros(len(drawn), np.bool_)
    if fraction:
        count = max(1, round(fraction * len(drawn)))
        held = drawn <= np.partition(drawn, count - 1)[count - 1]
    if held.all():
        held[:] = False
    places = np.flatnonzero(held)
    return held, places[np.argsort(drawn[places], kind="stable")]
