"""What training reads: rows of token ids and labels, addressed by index."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from easyllm.data.dataset.epochs import Epochs, Split
from easyllm.data.dataset.packing import Plan
from easyllm.data.dataset.split_conversations import LongConversations
from easyllm.data.store.block_hashes import damaged
from easyllm.data.store.build_token_cache import check_room
from easyllm.data.store.manifest import Manifest
from easyllm.data.store.shards import UNTRAINED, Int64
from easyllm.data.store.token_cache import Cache, built_once, open_cache
from easyllm.errors import UserError
from easyllm.files import read_record, stable_hash, write_record
from easyllm.spec.run import RunSpec

PLAN_VERSION = 2
"""Version of how documents are laid into rows; raised when the same spec lays them differently."""

COPIES_VERSION = 1
"""The same for documents that an epoch holds more than once, which happens where a source has a
weight other than 1."""

COUNTS = ("documents", "tokens", "heldout_documents", "heldout_tokens", "dropped_tokens")
"""Counts of each source, which are also summed over all."""


class Row(NamedTuple):
    """Three arrays of shape [seq_len]."""

    input_ids: Int64
    labels: Int64
    """Not shifted: ``labels[i]`` is ``input_ids[i]``, or -100 where that token is padding, is
    not trained, or is a document's first, which nothing predicts."""
    positions: Int64
    """Each token's place in its document; 0 where another begins. The part of a document that
    began in the row before counts from 0 again, and padding continues the count."""


def open_rows(run: RunSpec) -> Rows:
    """The rows of the run's token store; its map on this node is built where it is absent.

    Raises UserError where the store is absent, damaged or leaves nothing to train on.
    """
    cache, manifest = open_cache(run)
    return Rows(run, cache, manifest)


class Rows:
    """The endless sequence of training rows, and the held-out rows.

    A row is a pure function of the seed, its epoch and its index: any process that opens
    the same store finds the same, whatever was read before. The plan of an epoch is made by
    the first process of a node that needs it and mapped by all.
    """

    def __init__(self, run: RunSpec, cache: Cache, manifest: Manifest):
        self.seq_len, self.packing = run.data.seq_len, run.data.packing
        self._cache, self._seed = cache, run.seed
        self._fraction = run.training.evaluate.fraction
        self._pad = int(manifest["pad_id"])
        self._counting = np.arange(self.seq_len)
        self._max_heldout = run.training.evaluate.max_rows
        self._weights = {
            name: reader.weight
            if (reader := run.data.sources.get(name))
            else float(manifest["sources"][name]["weight"])
            for name in cache.sources
        }
        self._long: LongConversations = run.data.long_conversations
        read_as = [self.seq_len, self.packing, self._long, self._seed, self._fraction]
        laid_by = [PLAN_VERSION]
        if any(weight != 1 for weight in self._weights.values()):
            laid_by.append(COPIES_VERSION)
        self.fingerprint = stable_hash([cache.fingerprint, *laid_by, *read_as, self._weights])
        """Two runs with the same fingerprint read the same rows."""
        self._plans = cache.folder / "plans" / self.fingerprint
        heldout = self._plans / "heldout"
        built_once(cache.root, heldout, self._build_heldout)
        self._held_out = Plan.open(heldout, self.seq_len)
        try:
            facts = read_record(heldout / "facts.json")
        except (OSError, ValueError):
            raise damaged(heldout / "facts.json") from None
        self.per_epoch: int = facts["per_epoch"]
        """Training rows of an epoch; about the mean where a source's weight is fractional."""
        counts: dict[str, dict[str, Any]] = facts["sources"]
        if not self.per_epoch:
            raise UserError(
                f"data.long_conversations=drop leaves nothing to train on: every conversation is "
                f"longer than data.seq_len={self.seq_len}; give a larger data.seq_len, or "
                "data.long_conversations=cut_at_turns"
            )
        self.manifest: dict[str, Any] = {
            **{key: sum(source[key] for source in counts.values()) for key in COUNTS},
            "rows_per_epoch": self.per_epoch,
            "vocab_size": manifest["vocab_size"],
            "eos_id": manifest["eos_id"],
            "pad_id": manifest["pad_id"],
            "conversations": sorted(cache.conversations),
            "template_arguments": manifest["chats"].get("arguments", {}),
            "sources": counts,
        }
        self.cache = {"bytes": cache.bytes, "seconds": cache.seconds}
        """Size of this node's map of the store, and the time that building it took."""
        self._epochs = Epochs(self.plan, self.per_epoch, self._weights.values())

    def epoch(self, index: int) -> int:
        """The epoch, from 0, to which a row belongs."""
        return self._epochs.locate(index)[0]

    def sample(self, index: int) -> Row:
        """The training row with this index, from 0 on without end."""
        epoch, row = self._epochs.locate(index)
        return self._row(self._epochs.plan(epoch), row)

    def filled(self, index: int) -> int:
        """Number of tokens of documents in a training row; padding follows them."""
        epoch, row = self._epochs.locate(index)
        return sum(tokens for _, _, tokens in self._epochs.plan(epoch).row(row))

    def heldout(self) -> list[Row]:
        """Rows of the held-out documents in a fixed order, ``evaluate.max_rows`` at most."""
        rows = min(self._held_out.rows, self._max_heldout)
        return [self._row(self._held_out, row) for row in range(rows)]

    def plan(self, epoch: int) -> Plan:
        """How the training documents of an epoch are placed in its rows."""
        folder = self._plans / f"epoch-{epoch}"

        def build(temporary: Path) -> None:
            plan = self._split().epoch(epoch, self.packing)
            check_room(self._cache.root, plan.bytes, "the plan of an epoch's rows")
            plan.save(temporary)

        built_once(self._cache.root, folder, build)
        return Plan.open(folder, self.seq_len)

    def _build_heldout(self, folder: Path) -> None:
        split = self._split()
        split.evaluation(self.packing).save(folder)
        per_epoch = split.per_epoch(self.packing)
        write_record(folder / "facts.json", {"per_epoch": per_epoch, "sources": split.counts})

    def _split(self) -> Split:
        return Split(
            self._cache, self._weights, self._fraction, self._seed, self.seq_len, self._long
        )

    def _row(self, plan: Plan, row: int) -> Row:
        tokens, trained, end = self._cache.tokens, self._cache.trained, self.seq_len
        ids = np.full(end, self._pad, np.int32)
        mask = np.zeros(end, np.bool_)
        positions = self._counting.copy()
        slot = 0
        for place, slot, count in plan.row(row):
            until = slot + count
            tokens.read(place, ids[slot:until])
            if trained is None:
                mask[slot:until] = True
            else:
                trained.read(place, mask[slot:until])
            mask[slot] = False  # nothing predicts it
            positions[slot:until] = self._counting[:count]
        positions[slot:] = self._counting[: end - slot]
        input_ids = ids.astype(np.int64)
        return Row(input_ids, np.where(mask, input_ids, UNTRAINED), positions)
