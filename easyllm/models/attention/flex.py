"""Attention that stays within documents, with torch's flex attention."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from easyllm.models.attention.masks import refuse_mask
from easyllm.models.custom.modeling_baichuan import alibi_slopes

if TYPE_CHECKING:
    from easyllm.models.attention.documents import Documents


def attend_by_flex(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    documents: Documents,
    alibi: bool = False,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document. Shapes are those of ``attend_by_document``.

    On CUDA torch compiles it into kernels that skip blocks outside the mask. On a CPU it has no
    backward pass.
    """
    refuse_mask(attention_mask)
    heads, groups = query.shape[1], key.shape[1]
    if heads & (
        heads - 1
    ):  # its kernels share keys only among numbers of heads that are powers of two
        key, value = (part.repeat_interleave(heads // groups, dim=1) for part in (key, value))
    attend = _compiled() if query.is_cuda else flex_attention
    found = attend(
        query,
        key,
        value,
        score_mod=_distances(heads, query.device) if alibi else None,
        block_mask=block_mask(documents, sliding_window),
        enable_gqa=key.shape[1] != heads,
        scale=scaling,
    )
    return found.transpose(1, 2).contiguous(), None


def block_mask(documents: Documents, window: int | None) -> BlockMask:
    """The mask of the tokens that each token attends to; made once for all layers with the same
    mask."""
    key = "mask", window
    if key not in documents.shared:
        rows, tokens = documents.positions.shape
        number = (documents.positions == 0).cumsum(dim=-1)  # the document's beginning in its row

        def seen(row: Any, head: Any, query: Any, other: Any) -> Any:
            allowed = (query >= other) & (number[row, query] == number[row, other])
            return allowed & (query - other < window) if window else allowed

        documents.shared[key] = create_block_mask(
            seen, B=rows, H=None, Q_LEN=tokens, KV_LEN=tokens, device=number.device
        )
    found: BlockMask = documents.shared[key]
    return found


@functools.lru_cache(maxsize=2)
def _distances(heads: int, device: torch.device) -> Any:
    """ALiBi: the value added to a score is proportional to the distance."""
    slopes = alibi_slopes(heads).to(device)

    def modified(score: Any, row: Any, head: Any, query: Any, key: Any) -> Any:
        return score + slopes[head] * (key - query)

    return modified


@functools.cache
def _compiled() -> Any:
    return torch.compile(flex_attention)
