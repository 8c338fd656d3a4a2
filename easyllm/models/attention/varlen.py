"""Attention that stays within documents, with torch's flash attention over sequences of any
lengths."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from easyllm.models.attention.masks import refuse_mask

try:
    from torch.nn.attention import varlen
except ImportError:  # before torch 2.10; preflight refuses it before 2.11
    varlen = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from easyllm.models.attention.documents import Documents

varlen_attn: Any = varlen and varlen.varlen_attn
GROUPED: dict[str, bool] = {}
"""The argument for keys and values with fewer heads: torch 2.13 needs it, torch 2.11 supports them
without it."""
if varlen and "enable_gqa" in inspect.signature(varlen_attn).parameters:
    GROUPED["enable_gqa"] = True


def attend_by_varlen(  # not run yet: needs a GPU
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    documents: Documents,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document, in float16 or bfloat16, on CUDA. Shapes are those of
    ``attend_by_document``.

    One kernel processes all documents of the rows.
    """
    refuse_mask(attention_mask)
    rows, heads, tokens, _size = query.shape
    found = varlen_attn(
        *(part.transpose(1, 2).flatten(0, 1) for part in (query, key, value)),
        documents.bounds,
        documents.bounds,
        documents.longest,
        documents.longest,
        scale=scaling,
        # the kernel counts only the tokens before a query, a window also counts the query
        window_size=(sliding_window - 1 if sliding_window else -1, 0),
        **(GROUPED if key.shape[1] != heads else {}),
    )
    return found.unflatten(0, (rows, tokens)), None
