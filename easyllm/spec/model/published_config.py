"""The values that the keys of a published Hugging Face configuration may have. No I/O."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

DIMENSIONS = frozenset(
    "hidden_size intermediate_size max_position_embeddings model_max_length num_attention_heads "  # noqa: SIM905
    "num_hidden_layers vocab_size".split()
)
"""Whole numbers without which there is no model."""
COUNTS = frozenset(
    "head_dim kv_channels num_key_value_heads pretraining_tp seq_length sliding_window".split()  # noqa: SIM905
)
"""Whole numbers, or null where the value follows from other keys."""
NUMBERS = frozenset(
    "initializer_range layer_norm_epsilon max_window_layers rms_norm_eps rope_theta "  # noqa: SIM905
    "rotary_emb_base rotary_pct z_loss_weight".split()
)
SHARES = frozenset("attention_dropout attn_dropout_prob emb_dropout_prob".split())  # noqa: SIM905
FLAGS = frozenset(
    "_from_model_config alibi attention_bias bf16 fp16 fp32 gradient_checkpointing "  # noqa: SIM905
    "mlp_bias no_bias norm_head onnx_safe scale_attn_weights softmax_in_fp32 "
    "tie_word_embeddings use_cache use_cache_kernel use_cache_quantization use_dynamic_ntk "
    "use_logn_attn use_mrope use_sliding_window".split()
)
TEXTS = frozenset(
    "dtype hidden_act model_type tokenizer_class tokenizer_type torch_dtype "  # noqa: SIM905
    "transformers_version".split()
)
MAPS = frozenset(("auto_map", "rope_parameters", "rope_scaling"))
LISTS = frozenset(("architectures", "layer_types"))
TOKENS = frozenset(("bos_token_id", "eos_token_id", "pad_token_id"))
LARGEST = 2**31 - 1
LAYERS = 1000
"""The largest dimension, and the most decoder layers. No model has a tenth of either."""


def wrong(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each key with a value that it cannot have, and what the value must be."""
    for key, value in config.items():
        if must := _must(key, value):
            yield key, must


def _must(key: str, value: Any) -> str:
    """What the value must be; empty where the value is right or the key is not known."""
    if value is None:
        return "a whole number" if key in DIMENSIONS else ""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    finite = number and (isinstance(value, int) or math.isfinite(value))
    if key in DIMENSIONS or key in COUNTS:
        most = LAYERS if key == "num_hidden_layers" else LARGEST
        whole = isinstance(value, int) and number and 1 <= value <= most
        return "" if whole else f"a whole number from 1 to {most}"
    if key in NUMBERS:
        return "" if finite and 0 <= value <= 1e18 else "a number, at least 0"
    if key in SHARES:
        return "" if finite and 0 <= value <= 1 else "a number from 0 to 1"
    if key in TOKENS:
        ids = value if isinstance(value, list) else [value]
        sound = all(
            isinstance(i, int) and not isinstance(i, bool) and abs(i) <= LARGEST for i in ids
        )
        return "" if sound else "a token's number, or a list of them"
    for keys, kind, name in (
        (FLAGS, bool, "true or false"), (TEXTS, str, "text"), (MAPS, dict, "a map"),
        (LISTS, list, "a list"),
    ):  # fmt: skip
        if key in keys:
            return "" if isinstance(value, kind) else name
    return ""
