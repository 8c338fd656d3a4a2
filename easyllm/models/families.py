"""Model families: the keys, dimensions and layers behind each ``model_type``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from easyllm.models.decoders.family import Decoder
from easyllm.spec.roles import Family, LayerShape, ModelShape


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
MISTRAL_KEYS = COMMON_KEYS | _keys(
    """
    attention_dropout head_dim hidden_act max_position_embeddings num_key_value_heads
    rms_norm_eps rope_parameters rope_scaling rope_theta sliding_window
    """
)
QWEN2_KEYS = COMMON_KEYS | _keys(
    """
    attention_dropout hidden_act layer_types max_position_embeddings max_window_layers
    num_key_value_heads rms_norm_eps rope_parameters rope_scaling rope_theta sliding_window
    use_mrope use_sliding_window
    """
)
QWEN3_KEYS = (QWEN2_KEYS - {"use_mrope"}) | {"attention_bias", "head_dim"}
QWEN_KEYS = COMMON_KEYS | _keys(
    """
    attn_dropout_prob bf16 emb_dropout_prob fp16 fp32 kv_channels layer_norm_epsilon
    max_position_embeddings no_bias onnx_safe rotary_emb_base rotary_pct scale_attn_weights
    seq_length softmax_in_fp32 tokenizer_class tokenizer_type use_cache_kernel
    use_cache_quantization use_dynamic_ntk use_flash_attn use_logn_attn
    """
)
BAICHUAN_KEYS = COMMON_KEYS | _keys(
    """
    _from_model_config alibi gradient_checkpointing hidden_act max_position_embeddings
    model_max_length norm_head rms_norm_eps tokenizer_class z_loss_weight
    """
)
OF_THE_LARGE = _keys("bos_token_id eos_token_id layer_types max_window_layers pad_token_id")
"""Keys whose values are not valid in a smaller model: tokens and layers by number."""


@dataclass(frozen=True, kw_only=True)
class _Declared(Family):
    """The constants that every family declares in its class."""

    type_: ClassVar[str]
    keys: ClassVar[frozenset[str]]

    @property
    def model_type(self) -> str:
        return self.type_

    @property
    def config_keys(self) -> frozenset[str]:
        return self.keys

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

    def shaped(self, config: Mapping[str, Any], shape: ModelShape) -> dict[str, Any]:
        dimensions = {
            "model_type": self.model_type,
            "num_hidden_layers": shape.layers,
            "hidden_size": shape.hidden_size,
            "num_attention_heads": shape.heads,
            "intermediate_size": shape.intermediate_size,
            "vocab_size": shape.vocab_size,
            "max_position_embeddings": shape.max_positions,
            "tie_word_embeddings": shape.tied,
        }
        if "num_key_value_heads" in self.keys:
            dimensions["num_key_value_heads"] = shape.kv_heads
        if "head_dim" in self.keys:
            dimensions["head_dim"] = shape.head_dim
        kept = {key: value for key, value in config.items() if key not in OF_THE_LARGE}
        return {**kept, **dimensions}

    def layers(self, config: Any, attention: str) -> list[Any]:
        return list(self.skeleton(config, attention).specs())

    def assembly(self, config: Any, attention: str, router_aux_loss: float | None) -> Any:
        from easyllm.models.decoders.stage import stages
        from easyllm.models.layers import Assembly

        return Assembly(partial(stages, partial(self.skeleton, config, attention), False, None))

    def skeleton(self, config: Any, attention: str) -> Any:
        """The model of transformers with these layers, as
        ``easyllm.models.decoders.skeleton.Skeleton``."""
        from easyllm.models.attention.documents import implementation
        from easyllm.models.decoders.skeleton import Skeleton

        alibi = self.alibi(config.to_dict())
        found = Skeleton.of(self.canonical(config), "eager")
        # named only now, because transformers would ask for the package behind the name, and
        # an export is written without computing attention
        found.config._attn_implementation = implementation(attention, alibi)
        return replace(found, alibi=alibi)

    def param_specs(self, config: Mapping[str, Any]) -> list[LayerShape]:
        shape = self.shape(config)
        embedding, head, norm = "model.embed_tokens", "lm_head", "model.norm"
        table = (shape.vocab_size, shape.hidden_size)
        within = _decoder(shape, self.biased(config)) | self.normed(shape)
        return [
            LayerShape(embedding, {f"{embedding}.weight": table}),
            *(
                LayerShape(
                    f"model.layers.{index}",
                    {f"model.layers.{index}.{name}": size for name, size in within.items()},
                    decoder=True,
                )
                for index in range(shape.layers)
            ),
            LayerShape(norm, {f"{norm}.weight": (shape.hidden_size,)}),
            LayerShape(
                head,
                {} if shape.tied else {f"{head}.weight": table},
                tied_to=embedding if shape.tied else None,
            ),
        ]

    def biased(self, config: Mapping[str, Any]) -> str:
        """The linear layers of a decoder layer that have biases, by the ends of their names."""
        return ""

    def normed(self, shape: ModelShape) -> dict[str, tuple[int, ...]]:
        """Norms of a decoder layer besides the usual two."""
        return {}


def _decoder(shape: ModelShape, biased: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a decoder layer's parameters by their names in it."""
    width, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    linears = {
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    found: dict[str, tuple[int, ...]] = {}
    for name, size in linears.items():
        found[f"{name}.weight"] = size
        if name.rpartition(".")[2] in biased.split():
            found[f"{name}.bias"] = size[:1]
    return found | dict.fromkeys(
        ("input_layernorm.weight", "post_attention_layernorm.weight"), (width,)
    )


@dataclass(frozen=True, kw_only=True)
class Llama(_Declared):
    """Llama 1 to 3 and models with the same layers, such as SmolLM2."""

    type_ = "llama"
    keys = LLAMA_KEYS

    def biased(self, config: Mapping[str, Any]) -> str:
        attention = "q_proj k_proj v_proj o_proj " if config.get("attention_bias") else ""
        return attention + ("gate_proj up_proj down_proj" if config.get("mlp_bias") else "")


@dataclass(frozen=True, kw_only=True)
class Mistral(_Declared):
    """Mistral 7B and models with the same layers, which are Llama's with an optional window."""

    type_ = "mistral"
    keys = MISTRAL_KEYS


@dataclass(frozen=True, kw_only=True)
class Qwen2(_Declared):
    """Qwen2 and Qwen2.5."""

    type_ = "qwen2"
    keys = QWEN2_KEYS

    def biased(self, config: Mapping[str, Any]) -> str:
        return "q_proj k_proj v_proj"


@dataclass(frozen=True, kw_only=True)
class Qwen3(_Declared):
    """The dense Qwen3, which normalises its queries and keys."""

    type_ = "qwen3"
    keys = QWEN3_KEYS

    def shape(self, config: Mapping[str, Any]) -> ModelShape:
        # a separate size, not hidden_size / heads; this is its configuration's default
        return super().shape({**config, "head_dim": config.get("head_dim") or 128})

    def biased(self, config: Mapping[str, Any]) -> str:
        return "q_proj k_proj v_proj o_proj" if config.get("attention_bias") else ""

    def normed(self, shape: ModelShape) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(
            ("self_attn.q_norm.weight", "self_attn.k_norm.weight"), (shape.head_dim,)
        )


@dataclass(frozen=True, kw_only=True)
class Qwen(_Declared):
    """The first Qwen, ``QWenLMHeadModel``: Qwen2 with other names."""

    type_ = "qwen"
    keys = QWEN_KEYS

    def shape(self, config: Mapping[str, Any]) -> ModelShape:
        # its intermediate_size counts the gate and the up projection together
        return super().shape({**config, "intermediate_size": config["intermediate_size"] // 2})

    def shaped(self, config: Mapping[str, Any], shape: ModelShape) -> dict[str, Any]:
        return super().shaped(config, shape) | {
            "intermediate_size": 2 * shape.intermediate_size,
            "kv_channels": shape.head_dim,
            "seq_length": shape.max_positions,
        }

    def biased(self, config: Mapping[str, Any]) -> str:
        return "q_proj k_proj v_proj"

    def names(self, config: Any) -> Any:
        from easyllm.models.custom.modeling_qwen import FUSED, RENAMED
        from easyllm.models.weight_mapping import RowMapping

        return RowMapping(RENAMED, FUSED)

    def canonical(self, config: Any) -> Any:
        return config.modern()


@dataclass(frozen=True, kw_only=True)
class Baichuan(_Declared):
    """Baichuan and Baichuan2, 7B (rotary positions) and 13B (ALiBi): Llama with one matrix
    for queries, keys and values. The rows of Baichuan2's head are normalised."""

    type_ = "baichuan"
    keys = BAICHUAN_KEYS

    def shape(self, config: Mapping[str, Any]) -> ModelShape:
        if "max_position_embeddings" not in config and "model_max_length" in config:
            config = {**config, "max_position_embeddings": config["model_max_length"]}
        return super().shape(config)

    def shaped(self, config: Mapping[str, Any], shape: ModelShape) -> dict[str, Any]:
        # derived from the published dimensions, before they change
        extra = {"alibi": _alibi(config), "norm_head": _norm_head(config)}
        made = super().shaped(config, shape) | extra | {"model_max_length": shape.max_positions}
        if extra["alibi"]:
            del made["max_position_embeddings"]
        return made

    def skeleton(self, config: Any, attention: str) -> Any:
        from easyllm.models.custom.modeling_baichuan import NormHead, NoRotary

        found = super().skeleton(config, attention)
        if config.alibi:
            found.model.model.rotary_emb = NoRotary()
        if config.norm_head:
            table = config.hidden_size, config.vocab_size
            found.model.lm_head = NormHead(*table, bias=False, device="meta")
        return found

    def names(self, config: Any) -> Any:
        from easyllm.models.custom.modeling_baichuan import FUSED
        from easyllm.models.weight_mapping import RowMapping

        return RowMapping({}, FUSED)

    def alibi(self, config: Mapping[str, Any]) -> bool:
        return _alibi(config)

    def native_only(self, config: Mapping[str, Any]) -> str:
        return "its ALiBi positions exist in no other layout" if _alibi(config) else ""

    def canonical(self, config: Any) -> Any:
        return config.modern()

    def canonical_tensor(self, config: Any, name: str, tensor: Any) -> Any:
        from easyllm.models.custom.modeling_baichuan import normal_rows

        # a plain head whose rows are already normalised computes the same
        return normal_rows(tensor) if config.norm_head and name == "lm_head.weight" else tensor


def _alibi(config: Mapping[str, Any]) -> bool:
    given = config.get("alibi")
    return bool(config.get("max_position_embeddings") is None if given is None else given)


def _norm_head(config: Mapping[str, Any]) -> bool:
    given = config.get("norm_head")
    return bool(config.get("vocab_size") == 125696 if given is None else given)


FAMILIES: tuple[Family, ...] = (Llama(), Mistral(), Qwen2(), Qwen3(), Qwen(), Baichuan())


def family_named(model_type: str) -> Family:
    """The shipped family that reads a ``config.json`` of this ``model_type``."""
    described = (family for family in FAMILIES if family.model_type == model_type)
    return next(described, Decoder(type=model_type))
