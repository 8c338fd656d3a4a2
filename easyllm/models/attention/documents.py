"""Attention that stays within documents, for every implementation."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from easyllm.errors import UserError
from easyllm.models.attention.flex import attend_by_flex
from easyllm.models.attention.masks import refuse_mask
from easyllm.models.attention.varlen import attend_by_varlen
from easyllm.models.custom.modeling_baichuan import alibi_slopes

BY_DOCUMENT = "easyllm_sdpa"
"""The name in transformers' attention interface of torch's attention, document by document."""
BY_FLEX = "easyllm_flex"
"""The name of the same with torch's flex attention."""
BY_VARLEN = "easyllm_varlen"
"""The name of the same with torch's flash attention over sequences of any lengths."""
OWN = (BY_DOCUMENT, BY_FLEX, BY_VARLEN)
"""Those that are given ``Documents`` and need no mask."""
FLASH_ALIBI = "easyllm_flash_alibi"
"""The name of flash-attn's kernel with ALiBi, which transformers does not pass on."""


@dataclass(frozen=True)
class Documents:
    """The places of a micro-batch's documents in its rows."""

    positions: torch.Tensor
    """``(rows, tokens)``: each token's index in its document; 0 where a document begins, and so at
    the beginning of each row."""
    bounds: torch.Tensor
    """``(documents + 1,)``, int32: the indices at which documents begin in the concatenated rows,
    and the end."""
    lengths: list[int]
    """The lengths of all documents, row by row."""
    longest: int
    """The length of the longest document. It is a field, so that compiled code depends on this
    number only, not on each of ``lengths``."""
    shared: dict[tuple[str, Any], Any] = field(default_factory=dict, compare=False, repr=False)
    """Values that are the same in every layer, by name: the first layer computes them for all."""

    @classmethod
    def of(cls, positions: torch.Tensor, known: torch.Tensor | None = None) -> Documents:
        """``known`` are the same positions in host memory. With them nothing is read back from a
        GPU, which would wait for all its queued work."""
        flat = (positions if known is None else known).flatten()
        begins = (flat == 0).nonzero().flatten()
        bounds = torch.cat([begins, begins.new_tensor([flat.numel()])]).to(torch.int32)
        lengths = bounds.diff().tolist()
        return cls(positions, bounds.to(positions.device, non_blocking=True), lengths, max(lengths))

    @property
    def one_a_row(self) -> bool:
        return len(self.lengths) == len(self.positions)


def implementation(attention: str, alibi: bool = False) -> str:
    """The implementation of ``model.attention``, by its name in transformers' attention interface.
    Raises UserError where it does not support ALiBi."""
    if attention == "flash_attention_2" and alibi:
        return FLASH_ALIBI
    if attention == "varlen" and alibi:
        raise UserError(
            "model.attention=varlen does not support ALiBi, which this model has for positions; "
            "give model.attention=flex_attention, or sdpa"
        )
    own = {"sdpa": BY_DOCUMENT, "flex_attention": BY_FLEX, "varlen": BY_VARLEN}
    return own.get(attention, attention)


def arguments(
    config: Any, documents: Documents, dtype: torch.dtype, alibi: bool = False
) -> dict[str, Any]:
    """The arguments besides positions with which a model of transformers keeps attention within
    documents; ``dtype`` is that of its hidden states."""
    name = config._attn_implementation
    if name in OWN:
        return {"documents": documents, **({"alibi": True} if alibi else {})}
    if name in ("flash_attention_2", FLASH_ALIBI):  # not run yet: needs a GPU
        # transformers reads boundaries from positions only if there is one row
        return {
            "cu_seq_lens_q": documents.bounds,
            "cu_seq_lens_k": documents.bounds,
            "max_length_q": documents.longest,
            "max_length_k": documents.longest,
        }
    if not alibi:
        return {}  # transformers sees in the positions where documents begin
    positions = documents.positions
    number = (positions == 0).cumsum(dim=-1)  # the document's beginning in its row
    behind = positions.unsqueeze(1) - positions.unsqueeze(2)
    seen = (number.unsqueeze(1) == number.unsqueeze(2)) & (behind <= 0)
    slopes = alibi_slopes(config.num_attention_heads).to(positions.device)
    added = (slopes[:, None, None] * behind.unsqueeze(1)).to(dtype)
    return {"attention_mask": added.masked_fill(~seen.unsqueeze(1), torch.finfo(dtype).min)}


@torch.compiler.disable  # type: ignore[untyped-decorator]  # else it is compiled for every row
def attend_by_document(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    documents: Documents,
    alibi: bool = False,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document. ``query``, ``key`` and ``value`` are ``(rows,
    heads, tokens, head_dim)``, keys and values perhaps of fewer heads; the result is ``(rows,
    tokens, heads, head_dim)``.

    One call for each document computes only the needed scores: on a CPU it is 3 to 12 times faster
    than a mask over the row, and its memory does not grow with the square of the row. ALiBi and a
    window that is shorter than a document need a mask over the document. Raises ValueError for a
    mask of the model's own.
    """
    refuse_mask(attention_mask)
    attend: Any = sdpa_attention_forward
    rows, heads, tokens, _ = query.shape

    def mask(length: int) -> torch.Tensor | None:
        if alibi:
            return _alibi(heads, tokens, query.dtype, query.device)[..., :length, :length]
        if sliding_window and length > sliding_window:
            return _band(length, sliding_window, query.device)
        return None

    if documents.one_a_row:
        output, _ = attend(module, query, key, value, mask(tokens), **options)
        return output, None
    split = (end_to_end(part).split(documents.lengths, dim=2) for part in (query, key, value))
    found = [
        attend(module, *parts, mask(parts[0].shape[2]), **options)[0]
        for parts in zip(*split, strict=True)
    ]
    return torch.cat(found, dim=1).unflatten(1, (rows, tokens)).squeeze(0), None


def end_to_end(part: torch.Tensor) -> torch.Tensor:
    """``(rows, heads, tokens, head_dim)`` as one row of all tokens."""
    return part.transpose(0, 1).flatten(1, 2).unsqueeze(0)


@functools.lru_cache(maxsize=2)
def _alibi(heads: int, tokens: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """``(1, heads, tokens, tokens)``: the values that ALiBi adds to the scores of a document. Its
    first rows and columns are those of any shorter document. It is kept, so that the layers of a
    stage share it."""
    places = torch.arange(tokens, device=device)
    behind = places - places.unsqueeze(1)
    slopes = alibi_slopes(heads).to(device)
    bias = torch.empty(1, heads, tokens, tokens, dtype=dtype, device=device)
    for head, slope in enumerate(
        slopes
    ):  # one head at a time: in fp32 all would take twice as much memory
        bias[0, head] = (slope * behind).masked_fill_(behind > 0, -torch.inf)
    return bias


def _band(tokens: int, window: int, device: torch.device) -> torch.Tensor:
    """``(tokens, tokens)``: true where a key is not after the query and is within the window."""
    places = torch.arange(tokens, device=device)
    behind = places.unsqueeze(1) - places
    return (behind >= 0) & (behind < window)


def attend_with_flash_alibi(  # not run yet: needs a GPU
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """``attend_by_document`` with ALiBi, computed by flash-attn's kernel, which takes the
    slopes."""
    from flash_attn import flash_attn_varlen_func

    rows, heads, tokens, _size = query.shape
    found = flash_attn_varlen_func(
        *(part.transpose(1, 2).flatten(0, 1) for part in (query, key, value)),
        cu_seqlens_q=cu_seq_lens_q,
        cu_seqlens_k=cu_seq_lens_q,
        max_seqlen_q=max_length_q,
        max_seqlen_k=max_length_q,
        dropout_p=dropout,
        softmax_scale=scaling,
        causal=True,
        alibi_slopes=alibi_slopes(heads).to(query.device),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return found.unflatten(0, (rows, tokens)), None


AttentionInterface.register(BY_DOCUMENT, attend_by_document)
AttentionInterface.register(BY_FLEX, attend_by_flex)
AttentionInterface.register(BY_VARLEN, attend_by_varlen)
AttentionInterface.register(FLASH_ALIBI, attend_with_flash_alibi)
