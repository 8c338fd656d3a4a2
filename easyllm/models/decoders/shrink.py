"""Smaller configurations of any decoder. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from easyllm.spec.roles import ModelShape

SMALL = {
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32, "intermediate_size_mlp": 64,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2, "moe_k": 2, "moe_num_experts": 4, "top_k_experts": 2, "zero_expert_num": 1,
    "n_shared_experts": 1, "num_shared_experts": 1, "moe_num_shared_experts": 1,
    "n_group": 1, "topk_group": 1, "num_expert_groups": 1,
    "q_lora_rank": 32, "kv_lora_rank": 16, "o_lora_rank": 16, "o_groups": 2,
    "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "index_n_heads": 4, "index_head_dim": 16, "index_topk": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_head_dim": 16, "linear_num_heads": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "hidden_size_per_layer_input": 16, "global_head_dim": 16, "num_global_key_value_heads": 2,
    "swa_head_dim": 16, "swa_v_head_dim": 16, "laurel_rank": 8, "altup_num_inputs": 2,
    "sliding_window": 8, "first_k_dense_replace": 1, "num_kv_shared_layers": 0,
    "embedding_size": 64, "dim_model_base": 64,
}  # fmt: skip
"""The largest values of dimensions that are not those of every decoder."""
DIMENSIONS = {
    "num_hidden_layers": "layers", "num_layers": "layers", "hidden_size": "hidden_size",
    "num_attention_heads": "heads", "num_key_value_heads": "kv_heads", "head_dim": "head_dim",
    "intermediate_size": "intermediate_size", "vocab_size": "vocab_size",
    "vocab_size_per_layer_input": "vocab_size", "max_position_embeddings": "max_positions",
}  # fmt: skip
"""Keys of every decoder, and the fields of a ModelShape with their values."""
DROPPED = frozenset(
    "_name_or_path architectures auto_map dtype layers_block_type torch_dtype "  # noqa: SIM905
    "transformers_version".split()
)


def shrunk(config: Mapping[str, Any], shape: ModelShape) -> dict[str, Any]:
    """A complete configuration with other dimensions and without dropout, which is valid for the
    same class. Each kind of layer that the larger model has is kept, as far as there are layers
    enough."""
    layers = config.get("num_hidden_layers") or config.get("num_layers") or 0
    kept = _each_kind(config, layers, shape.layers)
    latent = "kv_lora_rank" in config
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key in DROPPED or (latent and key == "qk_head_dim"):
            continue  # the width of a head follows from its parts
        if value is None or isinstance(value, bool):
            pass
        elif key.endswith("token_id"):
            value = min(value, shape.vocab_size - 1) if isinstance(value, int) else None
        elif latent and key == "head_dim":
            if value != config.get("qk_rope_head_dim"):
                continue
            value = SMALL["qk_rope_head_dim"]
        elif key in DIMENSIONS:
            value = getattr(shape, DIMENSIONS[key])
        elif key in SMALL:
            value = min(value, SMALL[key]) if isinstance(value, int) else SMALL[key]
        elif isinstance(value, list) and len(value) == layers:
            value = [value[place] for place in kept]
        elif key == "per_layer_config" and isinstance(value, Mapping):
            given = {int(place): own for place, own in value.items()}
            value = {new: shrunk(given[old], shape) for new, old in enumerate(kept) if old in given}
        elif key.startswith("rope") and isinstance(value, Mapping):
            width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
            value = _positions(value, shape.head_dim / width)
        elif isinstance(value, float) and "dropout" in key:
            value = 0.0
        found[key] = value
    if latent and "num_key_value_heads" in found:
        found["num_key_value_heads"] = shape.heads
    return found


def _each_kind(config: Mapping[str, Any], layers: int, count: int) -> list[int]:
    """``count`` places of layers, of every kind that the lists of ``config`` tell apart, in the
    order in which kinds begin."""
    lists = [v for v in config.values() if isinstance(v, list) and len(v) == layers]
    kinds = [tuple(map(str, kind)) for kind in zip(*lists, strict=True)]
    first = [place for place, kind in enumerate(kinds) if kind not in kinds[:place]]
    return [first[place % len(first)] for place in range(count)] if first else []


def _positions(given: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Rotary positions of heads whose width is multiplied by ``scale``, without lists that are as
    long as a head is wide."""
    found: dict[str, Any] = {}
    for key, value in given.items():
        if isinstance(value, Mapping):
            found[key] = _positions(value, scale)
        elif key.endswith("_factor") and isinstance(value, list):
            found["rope_type"] = "default"
        elif key == "mrope_section":
            parts = [max(1, round(part * scale)) for part in value]
            found[key] = [round(sum(value) * scale) - sum(parts[1:]), *parts[1:]]
        elif key not in found:
            found[key] = value
    return found
