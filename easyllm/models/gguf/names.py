"""Tensor names of the architectures that are read and written, and how llama.cpp reorders heads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

OUTER = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
WITHIN = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Modules of a decoder layer: transformers' names, and GGUF's."""
ROPE_FACTORS = "rope_freqs.weight"
"""The name of the factors by which the frequencies of Llama 3's rotary positions are divided,
[head_dim / 2]."""

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""The architecture of each ``model_type`` that can be written."""

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def in_gguf(name: str) -> str:
    """GGUF's name of a parameter. Raises KeyError for one that has none."""
    module, _, kind = name.rpartition(".")
    if found := _LAYER.fullmatch(module):
        return f"blk.{found[1]}.{WITHIN[found[2]]}.{kind}"
    return f"{OUTER[module]}.{kind}"


def turned(tensor: Any, name: str, config: Mapping[str, Any], *, back: bool = False) -> Any:
    """A parameter in the order of llama.cpp's ``llama``: in each query and key head, the rows of
    the first half and of the second half alternate, because llama.cpp rotates neighbours where
    transformers rotates halves. ``back`` undoes it. Other architectures rotate halves too.

    ``tensor`` is [rows, …] of torch or numpy; ``name`` is transformers'.
    """
    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config.get("num_key_value_heads") or config["num_attention_heads"],
    }.get(name.split(".")[-2])
    if heads is None or ARCHITECTURES[config["model_type"]] != "llama":
        return tensor
    half = tensor.shape[0] // heads // 2
    by = (half, 2) if back else (2, half)
    return tensor.reshape(heads, *by, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
