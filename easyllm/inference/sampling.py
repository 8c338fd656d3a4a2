"""The next token of each row of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from easyllm.spec.run import SamplingSpec


def choose(logits: Tensor, seen: Tensor, sampling: SamplingSpec, draws: Sequence[float]) -> Tensor:
    """Token ids ``[rows]`` for ``logits [rows, vocabulary]``.

    ``seen [rows, vocabulary]`` marks the tokens of a row's prompt and completion, whose
    scores the repetition penalty lowers (Keskar et al. 2019). ``draws`` holds a number in
    [0, 1) for each row: the token at which the cumulative probability reaches it is taken,
    so a row's choice depends on nothing but its own logits and its own draw.
    """
    logits = logits.float()
    if sampling.repetition_penalty != 1:
        penalty = sampling.repetition_penalty
        lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
        logits = torch.where(seen, lowered, logits)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    ranked, order = (logits / sampling.temperature).sort(dim=-1, descending=True)
    if sampling.top_k:
        ranked, order = ranked[:, : sampling.top_k], order[:, : sampling.top_k]
    # In float64, so that the sum over a large vocabulary ends close to 1.
    chances = ranked.double().softmax(-1)
    before = chances.cumsum(-1) - chances
    kept = before < sampling.top_p
    kept[:, 0] = True
    chances = chances * kept
    reached = chances.cumsum(-1)
    target = torch.tensor(draws, dtype=reached.dtype, device=reached.device)[:, None]
    place = torch.searchsorted(reached, target * reached[:, -1:])
    return order.gather(1, place)[:, 0]
