"""Model families: the keys, dimensions and layers behind each ``model_type``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from easyllm.errors import UserError
from easyllm.spec.roles import Family, ModelShape


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


COMMON_KEYS = _keys(
    """
    architectures auto_map bos_token_id dtype eos_token_id hidden_size initializer_range
    intermediate_size model_type num_attention_heads num_hidden_layers pad_token_id
    tie_word_embeddings torch_dtype transformers_version use_cache vocab_size
    """
)
"""Keys that the ``config.json`` of every family may hold."""

LLAMA_KEYS = COMMON_KEYS | _keys(
    """
    attention_bias attention_dropout head_dim hidden_act max_position_embeddings mlp_bias
    num_key_value_heads pretraining_tp rms_norm_eps rope_parameters rope_scaling rope_theta
    """
)
QWEN2_KEYS = COMMON_KEYS | _keys(
    """
    attention_dropout hidden_act layer_types max_position_embeddings max_window_layers
    num_key_value_heads rms_norm_eps rope_parameters rope_scaling rope_theta sliding_window
    use_mrope use_sliding_window
    """
)
QWEN_KEYS = COMMON_KEYS | _keys(
    """
    attn_dropout_prob bf16 emb_dropout_prob fp16 fp32 kv_channels layer_norm_epsilon
    max_position_embeddings no_bias onnx_safe rotary_emb_base rotary_pct scale_attn_weights
    seq_length softmax_in_fp32 tokenizer_class use_cache_kernel use_cache_quantization
    use_dynamic_ntk use_flash_attn use_logn_attn
    """
)
BAICHUAN_KEYS = COMMON_KEYS | _keys(
    """
    _from_model_config gradient_checkpointing hidden_act max_position_embeddings
    model_max_length rms_norm_eps tokenizer_class z_loss_weight
    """
)


def _later(name: str) -> str:
    return (
        f"{name} models can be planned but not trained yet; "
        "choose a Llama model, e.g. model=llama_13b, or leave train and export out of the stages"
    )


@dataclass(frozen=True, kw_only=True)
class _Declared(Family):
    """What every family declares as constants of its class."""

    type_: ClassVar[str]
    keys: ClassVar[frozenset[str]]
    later: ClassVar[str] = ""

    @property
    def model_type(self) -> str:
        return self.type_

    @property
    def config_keys(self) -> frozenset[str]:
        return self.keys

    @property
    def unsupported(self) -> str:
        return self.later

    def shape(self, config: Mapping[str, Any]) -> ModelShape:
        heads = config["num_attention_heads"]
        return ModelShape(
            layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            intermediate_size=config["intermediate_size"],
            vocab_size=config["vocab_size"],
            max_positions=config["max_position_embeddings"],
            tied=config.get("tie_word_embeddings", False),
        )

    def layers(self, config: Any, attention: str) -> list[Any]:
        raise UserError(f"model.family: {self.later}")


@dataclass(frozen=True, kw_only=True)
class Llama(_Declared):
    """Llama 1 to 3 and whatever shares its layers, such as SmolLM2."""

    type_ = "llama"
    keys = LLAMA_KEYS

    def layers(self, config: Any, attention: str) -> list[Any]:
        from easyllm.models.layers import llama_layers

        return list(llama_layers(config, attention))


@dataclass(frozen=True, kw_only=True)
class Qwen2(_Declared):
    """Qwen2 and Qwen2.5."""

    type_ = "qwen2"
    keys = QWEN2_KEYS
    later = _later("Qwen2")


@dataclass(frozen=True, kw_only=True)
class Qwen(_Declared):
    """The first Qwen, ``QWenLMHeadModel``."""

    type_ = "qwen"
    keys = QWEN_KEYS
    later = _later("Qwen")

    def shape(self, config: Mapping[str, Any]) -> ModelShape:
        # its intermediate_size counts the gate and the up projection together
        return super().shape({**config, "intermediate_size": config["intermediate_size"] // 2})


@dataclass(frozen=True, kw_only=True)
class Baichuan(_Declared):
    """Baichuan-7B (rotary) and Baichuan-13B (ALiBi, without a table of positions)."""

    type_ = "baichuan"
    keys = BAICHUAN_KEYS
    later = _later("Baichuan")

    def shape(self, config: Mapping[str, Any]) -> ModelShape:
        if "max_position_embeddings" not in config and "model_max_length" in config:
            config = {**config, "max_position_embeddings": config["model_max_length"]}
        return super().shape(config)


FAMILIES: tuple[Family, ...] = (Llama(), Qwen2(), Qwen(), Baichuan())


def family_named(model_type: str) -> Family | None:
    """The shipped family that reads a ``config.json`` of this ``model_type``."""
    return next((family for family in FAMILIES if family.model_type == model_type), None)
