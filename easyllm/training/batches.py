"""Micro-batches of rows, with the scale that makes every trained token of a step count alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from easyllm.data.rows import Row
from easyllm.errors import UserError
from easyllm.parallelism.engine import Batch, TrainEngine


def scaled(
    rows: Sequence[Sequence[Row]], engine: TrainEngine, vocab_size: int
) -> tuple[list[Batch], int]:
    """This rank's micro-batches, and the trained tokens of all replicas' together.

    The engine takes the mean over micro-batches and replicas; their number over the trained
    tokens is the scale that makes it the mean over tokens. Must be called by every rank of
    the replica group. Raises UserError for a token that the model does not have.
    """
    tensors = [
        [torch.from_numpy(np.stack(part)) for part in zip(*micro, strict=True)] for micro in rows
    ]
    for ids, _, _ in tensors:
        if (largest := int(ids.max())) >= vocab_size:
            raise UserError(
                f"model.config.vocab_size={vocab_size}, but the data holds token {largest}; "
                "tokenize with the model's own tokenizer, or give model.init=random "
                "model.overrides.vocab_size"
            )
    # a row's first token is predicted from nothing
    own = sum(int((labels[:, 1:] != -100).sum()) for _, labels, _ in tensors)
    trained = engine.sum_over_replicas(own)
    scale = torch.tensor(len(tensors) * engine.data_size / max(1, trained))
    return [((ids, positions), (labels, scale)) for ids, labels, positions in tensors], trained


def dealt(rows: Sequence[Row], size: int, data_rank: int, replicas: int) -> list[list[Row]]:
    """Replica ``data_rank``'s micro-batches of ``rows``; each replica gets as many.

    Untrained rows fill up the last ones.
    """
    count = micro_batches(len(rows), size, replicas)
    mine = list(rows[data_rank::replicas])
    ids, labels, _ = rows[0]
    blank = Row(np.zeros_like(ids), np.full_like(labels, -100), np.arange(len(ids)))
    mine += [blank] * (count * size - len(mine))
    return [mine[begin : begin + size] for begin in range(0, len(mine), size)]


def micro_batches(rows: int, size: int, replicas: int) -> int:
    """Micro-batches a replica needs to see its share of ``rows``."""
    return -(-rows // (size * replicas))
