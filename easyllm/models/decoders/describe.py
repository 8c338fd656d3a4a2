"""``python -m easyllm.models.decoders.describe``: the outline of a configuration, as JSON on the
standard output; the configuration comes from the standard input."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Mapping
from math import prod
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)

from easyllm.errors import UserError
from easyllm.models.attention.documents import BY_DOCUMENT
from easyllm.models.decoders.outline import Outline, written
from easyllm.models.decoders.routers import experts_of_a_token
from easyllm.models.decoders.skeleton import Skeleton
from easyllm.models.decoders.small_model import WRONG, changes_logits, leaks
from easyllm.models.layers import param_specs
from easyllm.spec.roles import LayerShape, ModelShape

UNCUT = {
    "deepseek_v4": "its layers hand over several streams, and some need the token ids",
    "gemma3n_text": "its layers hand over several streams and share embeddings",
    "glm_moe_dsa": "a layer uses the tokens that the one before it has chosen",
    "hy_v4": "a layer uses the tokens that the one before it has chosen",
}
"""Types whose layers cannot be divided, each with the reason."""
UNTRAINED = {
    "hrm_text": "its plan in transformers names modules that it does not have",
    "phi4_multimodal": "it takes images and sound besides text",
}
"""Types that are not trained, each with the reason."""


def known_types() -> list[str]:
    """The types of causal language models that can be trained: transformers names their parts in
    order."""
    return [
        name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if name in CONFIG_MAPPING and getattr(CONFIG_MAPPING[name], "base_model_pp_plan", None)
        if name not in UNTRAINED
    ]  # fmt: skip


def described(config: Mapping[str, Any]) -> dict[str, Any]:
    return written(_outline(config))


def _outline(config: Mapping[str, Any]) -> Outline:
    model_type = str(config.get("model_type"))
    if model_type not in known_types():
        return Outline(problem=_unknown(model_type), known=tuple(known_types()))
    try:
        made = AutoConfig.for_model(**{**config, "model_type": model_type})
        keys = _keys(type(made))
        attention = _attention(made)
        skeleton = Skeleton.of(made, attention)
    except UserError as error:
        return Outline(problem=str(error), keys=_keys(CONFIG_MAPPING[model_type]))
    except (*WRONG, AttributeError, KeyError, StrictDataclassError) as error:
        keys = _keys(CONFIG_MAPPING[model_type])
        return Outline(problem=f"makes no {model_type} model: {error}", keys=keys)
    layers = param_specs(skeleton.specs())
    complete = made.to_dict()
    return Outline(
        keys=keys, config=complete, layers=tuple(layers), shape=_shape(made, complete, layers),
        active=_active(complete, layers), uncut=_uncut(made, skeleton),
        eager_only=attention == "eager", leaks=leaks(complete, attention, attention),
        changes_logits=changes_logits(complete, attention),
        own_attention=not leaks(complete, BY_DOCUMENT, attention),
    )  # fmt: skip


def _unknown(model_type: str) -> str:
    if reason := UNTRAINED.get(model_type):
        return reason
    if model_type not in CONFIG_MAPPING:
        return f"transformers {transformers.__version__} has no models of this type"
    text = getattr(CONFIG_MAPPING[model_type], "sub_configs", {}).get("text_config")
    inner = getattr(text, "model_type", "")
    if inner in known_types():
        return (
            f"it takes images or sound besides text; its text part alone, of type {inner}, can be "
            "trained"
        )
    return "it is not a decoder whose layers transformers names in order (base_model_pp_plan)"


def _keys(cls: type[PretrainedConfig]) -> frozenset[str]:
    """The fields of a configuration class, and what its model's code reads besides, such as Qwen3
    MoE's ``head_dim``."""
    fields = {field.name for field in dataclasses.fields(cls) if field.name[0] != "_"}  # type: ignore[arg-type]
    older = {"torch_dtype", "rope_theta", "rope_scaling", "auto_map", "model_type"}
    model = MODEL_FOR_CAUSAL_LM_MAPPING[cls]
    source = inspect.getsource(sys.modules[model.__module__])
    read = re.findall(r"config\.(\w+)|getattr\([\w.]*config, \"(\w+)\"", source)
    used = {name for pair in read for name in pair if name and name[0] != "_"}
    return frozenset(fields | set(cls.attribute_map) | older | used)


def _attention(config: PretrainedConfig) -> str:
    """``sdpa``, or what the type has instead."""
    try:
        Skeleton.of(config, "sdpa")
    except ValueError as error:
        if "attention implementation" not in str(error):
            raise
        return "eager"
    return "sdpa"


def _shape(config: Any, complete: Mapping[str, Any], layers: list[LayerShape]) -> ModelShape:
    def value(*names: str, default: int = 0) -> int:
        found = (complete.get(config.attribute_map.get(name, name)) for name in names)
        return next((number for number in found if isinstance(number, int)), default)

    hidden, heads = value("hidden_size"), value("num_attention_heads")
    return ModelShape(
        layers=sum(layer.decoder for layer in layers),
        hidden_size=hidden,
        heads=heads,
        kv_heads=value("num_key_value_heads", default=heads),
        head_dim=value("head_dim", "v_head_dim", default=hidden // max(heads, 1)),
        intermediate_size=value("intermediate_size", "moe_intermediate_size"),
        vocab_size=value("vocab_size"),
        max_positions=value("max_position_embeddings"),
        tied=layers[-1].tied_to is not None,
    )


def _active(config: Mapping[str, Any], layers: list[LayerShape]) -> float:
    """Experts are stacked along the first dimension of a parameter of three."""
    chosen = experts_of_a_token(config)
    total = used = 0.0
    for layer in layers:
        for shape in layer.parameters.values():
            size = prod(shape)
            total += size
            used += size * min(1.0, chosen / shape[0]) if chosen and len(shape) == 3 else size
    return used / total


def _uncut(config: Any, skeleton: Skeleton) -> str:
    if reason := UNCUT.get(config.model_type):
        return reason
    if getattr(config, "num_kv_shared_layers", 0):
        return "its last layers use the keys and values of earlier ones (num_kv_shared_layers)"
    if len(skeleton.before) > 1:
        return f"{', '.join(skeleton.before[1:])} is used beside the layers"
    return ""


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    print(json.dumps(described(json.load(sys.stdin)), default=str))
