"""Micro-batches of rows, with the scale that gives every trained token of a step equal weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from easyllm.data.dataset.rows import Row
from easyllm.errors import UserError
from easyllm.parallelism.engine import Batch


@dataclass(frozen=True)
class Share:
    """What this rank reads of a step's or an evaluation's rows."""

    tensors: list[list[torch.Tensor]]
    """Token ids, labels and positions of each micro-batch, ``(rows, tokens)`` each."""
    trained: int
    """Trained tokens among them."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[Row]], vocab_size: int) -> Share:
        """Raises UserError for a token that the model does not have."""
        tensors = [
            [torch.from_numpy(np.stack(part)) for part in zip(*micro, strict=True)]
            for micro in rows
        ]
        for ids, _, _ in tensors:
            if (largest := int(ids.max())) >= vocab_size:
                raise UserError(
                    f"model.config.vocab_size={vocab_size}, but the data holds token {largest}; "
                    "tokenize with the model's own tokenizer, or give model.init=random "
                    "model.overrides.vocab_size"
                )
        # a row's first token is predicted from nothing
        trained = sum(int((labels[:, 1:] != -100).sum()) for _, labels, _ in tensors)
        return cls(tensors, trained)

    def scaled(self, trained: int, replicas: int) -> list[Batch]:
        """The micro-batches; all ``replicas`` together have ``trained`` tokens to train.

        The engine takes the mean over micro-batches and replicas. The scale, their number divided
        by the trained tokens, makes it the mean over tokens.
        """
        scale = torch.tensor(len(self.tensors) * replicas / max(1, trained))
        return [((ids, positions), (labels, scale)) for ids, labels, positions in self.tensors]


NOTHING = Share([], 0)


def dealt(rows: Sequence[Row], size: int, data_rank: int, replicas: int) -> list[list[Row]]:
    """Replica ``data_rank``'s micro-batches of ``rows``; each replica gets the same number.

    Untrained rows fill up the last ones.
    """
    count = micro_batches(len(rows), size, replicas)
    mine = list(rows[data_rank::replicas])
    ids, labels, _ = rows[0]
    blank = Row(np.zeros_like(ids), np.full_like(labels, -100), np.arange(len(ids)))
    mine += [blank] * (count * size - len(mine))
    return [mine[begin : begin + size] for begin in range(0, len(mine), size)]


def micro_batches(rows: int, size: int, replicas: int) -> int:
    """Micro-batches that a replica needs for its share of ``rows``."""
    return -(-rows // (size * replicas))
