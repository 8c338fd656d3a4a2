"""torch's varlen attention on a CPU, where torch has no kernel for it: its operator gets one here,
plain and in float32, so that what is handed to it can be tested without a GPU."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch.nn.attention import varlen


def _documents(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor,
    scale: float, window: list[int],
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:  # fmt: skip
    """By the documentation of ``varlen_attn``: of each document its place in tensors ``(tokens,
    heads, head_dim)``, its queries, keys and values ``(heads, tokens, head_dim)`` and its attention
    weights. ``window`` is the tokens before and after a query that it looks at, -1 for all."""
    group = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(group, dim=1) for part in (key, value))
    for begin, end in pairwise(bounds.tolist()):
        place = slice(begin, end)
        q, k, v = (part[place].float().transpose(0, 1) for part in (query, key, value))
        places = torch.arange(end - begin)
        behind = places[:, None] - places
        seen = torch.ones_like(behind, dtype=torch.bool)
        if window[0] >= 0:
            seen &= behind <= window[0]
        if window[1] >= 0:
            seen &= behind >= -window[1]
        scores = (scale * q @ k.transpose(1, 2)).masked_fill(~seen, -torch.inf)
        yield place, q, k, v, scores.softmax(-1)


def _forward(
    query: Any, key: Any, value: Any, bounds: Any, bounds_k: Any, max_q: int, max_k: int,
    is_causal: bool = False, scale: float | None = None, window_size: Any = None, *_: Any,
) -> Any:  # fmt: skip
    longest = int(bounds.diff().max())
    assert torch.equal(bounds, bounds_k) and max_q == max_k >= longest and scale is not None
    assert bounds.dtype == torch.int32 and is_causal == (list(window_size) == [-1, 0])
    out = torch.empty_like(query)
    for place, _q, _k, v, weights in _documents(query, key, value, bounds, scale, window_size):
        out[place] = (weights @ v).transpose(0, 1)
    lse = torch.zeros(query.shape[1], query.shape[0])
    return out, lse, torch.zeros(2, dtype=torch.uint64)


def _backward(
    grad: Any, query: Any, key: Any, value: Any, out: Any, lse: Any, bounds: Any, bounds_k: Any,
    max_q: int, max_k: int, is_causal: bool, rng: Any, scale: Any = None, window_size: Any = None,
) -> Any:  # fmt: skip
    of_query = torch.empty_like(query)
    of_key, of_value = (torch.empty_like(part) for part in (key, value))

    def together(found: torch.Tensor) -> torch.Tensor:
        """The sum over the queries' heads that share one of the keys'."""
        return found.unflatten(0, (key.shape[1], -1)).sum(1).transpose(0, 1)

    for place, q, k, v, weights in _documents(query, key, value, bounds, scale, window_size):
        given = grad[place].float().transpose(0, 1)
        of_weights = given @ v.transpose(1, 2)
        of_scores = weights * (of_weights - (weights * of_weights).sum(-1, keepdim=True)) * scale
        of_query[place] = (of_scores @ k).transpose(0, 1)
        of_key[place] = together(of_scores.transpose(1, 2) @ q)
        of_value[place] = together(weights.transpose(1, 2) @ given)
    return of_query, of_key, of_value


@functools.cache
def register() -> None:
    varlen._varlen_attn.register_kernel("cpu")(_forward)
    varlen._varlen_attn_backward.register_kernel("cpu")(_backward)
