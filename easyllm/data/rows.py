"""What training reads: rows of token ids and labels, addressed by index."""

from __future__ import annotations

from typing import Any

import numpy as np

from easyllm.data.cache import Cache, open_cache
from easyllm.data.manifest import Manifest
from easyllm.data.packing import Epochs, Part, Plan
from easyllm.data.random import generator
from easyllm.data.shards import UNTRAINED, Bool, Int64, UInt64, mix
from easyllm.errors import UserError
from easyllm.files import digest
from easyllm.spec.run import RunSpec

Row = tuple[Int64, Int64]
"""``input_ids`` and ``labels``, both [seq_len]. Labels are not shifted: ``labels[i]`` is
``input_ids[i]``, or -100 where that token is padding or is not trained."""


def open_rows(run: RunSpec) -> Rows:
    """The rows of the run's token store; its map on this node is built where it is absent.

    Raises UserError where the store is absent, damaged or leaves nothing to train on.
    """
    cache, manifest = open_cache(run)
    return Rows(run, cache, manifest)


class Rows:
    """Training rows without end, and the held-out ones.

    A row is a pure function of the seed, its epoch and its index: any process that opens
    the same store finds the same, whatever was read before.
    """

    def __init__(self, run: RunSpec, cache: Cache, manifest: Manifest):
        fraction = run.training.evaluate.fraction
        self.seq_len = run.data.seq_len
        self._cache = cache
        self._pad = int(manifest["pad_id"])
        self._max_heldout = run.training.evaluate.max_rows
        lengths = np.diff(cache.offsets)
        parts, apart, counts = [], [], {}
        for name, (first, end) in cache.sources.items():
            held, order = _held_out(cache.hashes[first:end], fraction, run.seed, name)
            reader = run.data.sources.get(name)
            weight = reader.weight if reader else float(manifest["sources"][name]["weight"])
            parts.append(Part(name, first + np.flatnonzero(~held), weight))
            apart.append(first + order)
            counts[name] = {
                "documents": end - first,
                "tokens": int(lengths[first:end].sum()),
                "heldout_documents": len(order),
                "heldout_tokens": int(lengths[apart[-1]].sum()),
                "weight": weight,
            }
        held_out = np.concatenate(apart)
        if fraction and not len(held_out):
            raise UserError(
                f"training.evaluate.fraction={fraction:g} holds nothing out: no source has two "
                "different documents; give training.evaluate.fraction=0 or more documents"
            )
        self._epochs = Epochs(parts, lengths, self.seq_len, run.data.packing, run.seed)
        self._held_out = Plan.of(held_out, lengths, self.seq_len, run.data.packing)
        self.per_epoch = self._epochs.per_epoch
        """Training rows of an epoch; the mean where a source's weight is fractional."""
        self.manifest: dict[str, Any] = {
            **{
                key: sum(source[key] for source in counts.values())
                for key in ("documents", "tokens", "heldout_documents", "heldout_tokens")
            },
            "rows_per_epoch": self.per_epoch,
            "vocab_size": manifest["vocab_size"],
            "eos_id": manifest["eos_id"],
            "pad_id": manifest["pad_id"],
            "sources": counts,
        }
        self.cache = {"bytes": cache.bytes, "seconds": cache.seconds}
        """Size of this node's map of the store, and what building it took."""
        weights = {part.name: part.weight for part in parts}
        self.fingerprint = digest(
            [cache.fingerprint, run.seed, self.seq_len, run.data.packing, fraction, weights]
        )
        """Two runs with the same fingerprint read the same rows."""

    def epoch(self, index: int) -> int:
        """The epoch, from 0, to which a row belongs."""
        return self._epochs.locate(index)[0]

    def sample(self, index: int) -> Row:
        """The training row with this index, from 0 on without end."""
        epoch, row = self._epochs.locate(index)
        return self._row(self._epochs.plan(epoch), row)

    def heldout(self) -> list[Row]:
        """Rows of the held-out documents in a fixed order, ``evaluate.max_rows`` at most."""
        rows = min(self._held_out.rows, self._max_heldout)
        return [self._row(self._held_out, row) for row in range(rows)]

    def _row(self, plan: Plan, row: int) -> Row:
        places, slots = plan.row(row, self._cache.offsets)
        input_ids = np.full(self.seq_len, self._pad, np.int64)
        labels = np.full(self.seq_len, UNTRAINED, np.int64)
        input_ids[slots] = self._cache.tokens[places]
        if self._cache.trained is not None:
            trained = self._cache.trained[places]
            places, slots = places[trained], slots[trained]
        labels[slots] = input_ids[slots]
        return input_ids, labels


def _held_out(hashes: UInt64, fraction: float, seed: int, source: str) -> tuple[Bool, Int64]:
    """Which documents of a source are held out, as a mask and as places in a fixed order.

    The choice is by content: neither shuffling nor partitioning moves it, and documents
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
