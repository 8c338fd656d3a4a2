"""Log-probabilities of given tokens by a model of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from easyllm.inference.engine_protocol import TokenLogprob

AT_ONCE = 256
"""Tokens whose log-probabilities over the whole vocabulary are in memory in fp32 at a time."""


@torch.no_grad()
def scored(model: Any, attention: str, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """The log-probability of each token after the first, given those before it, with the ``top``
    likeliest tokens in its place; computed in one pass, with the ``attention`` that the model was
    loaded with instead of the one of continuous batching."""
    ids = torch.tensor([list(tokens)], device=model.device)
    batching = model.config._attn_implementation
    if batching != attention:
        model.set_attn_implementation(attention)
    try:
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0]
    finally:
        if batching != attention:
            model.set_attn_implementation(batching)
    found: list[TokenLogprob] = []
    for part, following in zip(logits.split(AT_ONCE), ids[0, 1:].split(AT_ONCE), strict=True):
        logprobs = part.float().log_softmax(dim=-1)
        own = logprobs.gather(1, following.unsqueeze(1)).squeeze(1).tolist()
        values, places = logprobs.topk(min(top, logprobs.shape[1]), dim=-1)
        for token, value, best in zip(
            following.tolist(), own, zip(places.tolist(), values.tolist(), strict=True), strict=True
        ):
            found.append(TokenLogprob(token, value, tuple(zip(*best, strict=True))))
    return found
