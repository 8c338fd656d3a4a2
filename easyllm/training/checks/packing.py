"""Whether documents in one row are computed as each by itself, on the run's own weights."""

from __future__ import annotations

import torch

from easyllm.errors import UserError
from easyllm.models.weights import DTYPES
from easyllm.parallelism import world
from easyllm.parallelism.engine import Batch, TrainEngine
from easyllm.spec.run import RunSpec

NEAR = 16
"""The tokens after the beginning of a document that are compared: what is carried over shows there
most."""
ROUNDING = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The largest difference that rounding explains, by dtype: the root mean square of the difference
of a token's logits, divided by that of the logits, the median over the tokens."""


def check_packing(run: RunSpec, vocab_size: int, engine: TrainEngine) -> float:
    """The difference between the logits of a document after another one in its row, and at the
    beginning of a row. Must be called by every rank.

    Raises UserError on all ranks where it is more than rounding.
    """
    drawn = torch.Generator().manual_seed(run.seed)
    ids = torch.randint(0, vocab_size, (run.data.seq_len,), generator=drawn)
    first = len(ids) // 3
    moved = torch.cat([ids[first:], ids[:first]])
    after = _batch(run, ids, (first, len(ids) - first))
    at_beginning = _batch(run, moved, (len(ids) - first, first))
    world.beat("comparing packed documents with separate ones")
    near = min(NEAR, len(ids) - first)
    found = engine.outputs(after, slice(first, first + near))
    expected = engine.outputs(at_beginning, slice(near))
    difference: float = 0.0
    if found is not None and expected is not None:
        difference = _difference(found, expected)
    difference = max(map(float, world.all_gather_object(difference)))
    limit = ROUNDING[DTYPES[run.model.dtype]]
    if not difference <= limit:
        raise UserError(
            f"data.packing={run.data.packing}: this model computes a document otherwise after "
            f"another one in its row: its logits differ by {difference:.2g} of their size, where "
            f"rounding explains {limit:.0e}; give data.packing=none, or training.check_packing="
            "false to train it all the same"
        )
    return difference


def _batch(run: RunSpec, ids: torch.Tensor, lengths: tuple[int, ...]) -> Batch:
    rows = run.parallelism.micro_batch_size
    positions = torch.cat([torch.arange(length) for length in lengths])
    labels = torch.full_like(ids, -100)
    labels[1] = ids[1]  # one, because a loss over no token is not a number
    stacked = [tensor.expand(rows, -1).contiguous() for tensor in (ids, positions, labels)]
    return (stacked[0], stacked[1]), (stacked[2], torch.tensor(1.0))


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of two ``(tokens, vocabulary)``."""
    mine, theirs = found.double(), expected.double()
    size = theirs.square().mean(dim=-1).sqrt().clamp(min=1e-30)
    return float(((mine - theirs).square().mean(dim=-1).sqrt() / size).median())
