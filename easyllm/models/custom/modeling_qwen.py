"""Qwen, the first generation (``QWenLMHeadModel``), as Qwen2's own modules.

This file and the one that it imports need torch and transformers only: an exported model carries
a copy of them, so that ``trust_remote_code=True`` runs it where easyllm is not installed. Beyond
``seq_length`` the published model stretches its rotary positions and scales its queries at
inference (``use_dynamic_ntk``, ``use_logn_attn``). That is not done here: more tokens are refused.
"""

from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, Qwen2Config, Qwen2Model
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from .both_transformers import PublishedNames, from_fields

RENAMED = {
    "model.embed_tokens.": "transformer.wte.",
    "model.norm.": "transformer.ln_f.",
    "model.layers.": "transformer.h.",
    ".input_layernorm.": ".ln_1.",
    ".post_attention_layernorm.": ".ln_2.",
    ".self_attn.o_proj.": ".attn.c_proj.",
    ".mlp.gate_proj.": ".mlp.w2.",
    ".mlp.up_proj.": ".mlp.w1.",
    ".mlp.down_proj.": ".mlp.c_proj.",
}
"""Parts of Qwen2's parameter names, and what they are called in Qwen's files."""
FUSED = {".attn.c_attn.": (".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.v_proj.")}
"""Tensors that hold the rows of several parameters one after the other."""


@from_fields
class QWenConfig(PretrainedConfig):
    """The published keys; ``intermediate_size`` counts both halves of the gate."""

    model_type = "qwen"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    vocab_size: int = 151936
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    kv_channels: int = 128
    intermediate_size: int = 22016
    max_position_embeddings: int = 8192
    seq_length: int = 8192
    layer_norm_epsilon: float = 1e-6
    initializer_range: float = 0.02
    rotary_emb_base: float | int = 10000
    rotary_pct: float | int = 1.0
    attn_dropout_prob: float | int = 0.0
    emb_dropout_prob: float | int = 0.0
    scale_attn_weights: bool = True
    use_dynamic_ntk: bool = True
    use_logn_attn: bool = True
    no_bias: bool = True
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if hasattr(PretrainedConfig, "__post_init__"):
            super().__post_init__(**kwargs)
        if self.kv_channels * self.num_attention_heads != self.hidden_size:
            raise ValueError(
                f"kv_channels {self.kv_channels} x num_attention_heads "
                f"{self.num_attention_heads} must be hidden_size {self.hidden_size}"
            )
        for key, only in (
            ("no_bias", True),
            ("rotary_pct", 1),
            ("scale_attn_weights", True),
            ("emb_dropout_prob", 0),
        ):
            if getattr(self, key) != only:
                raise ValueError(
                    f"{key}={getattr(self, key)}: no published Qwen has it; only {only}"
                )
        self.auto_map = {
            "AutoConfig": "modeling_qwen.QWenConfig",
            "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
        }

    def modern(self) -> Qwen2Config:
        """The same model in Qwen2's terms, which go no further than ``seq_length``."""
        return Qwen2Config(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size // 2,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_attention_heads,
            max_position_embeddings=min(self.max_position_embeddings, self.seq_length),
            rms_norm_eps=self.layer_norm_epsilon,
            initializer_range=self.initializer_range,
            rope_theta=float(self.rotary_emb_base),  # type: ignore[call-arg]  # in 4 and 5
            attention_dropout=self.attn_dropout_prob,
            tie_word_embeddings=self.tie_word_embeddings,
            use_cache=self.use_cache,
            pad_token_id=self.pad_token_id,
            bos_token_id=self.bos_token_id,
            eos_token_id=self.eos_token_id,
            dtype=self.dtype,
        )


class QWenLMHeadModel(PublishedNames, GenerationMixin):
    config_class = QWenConfig
    base_model_prefix = "model"
    RENAMED, FUSED = RENAMED, FUSED
    _no_split_modules = ["Qwen2DecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: QWenConfig):
        super().__init__(config)
        modern = config.modern()
        modern._attn_implementation = config._attn_implementation
        self.model = Qwen2Model(modern)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        if "cu_seq_lens_k" not in kwargs:  # else several sequences stand in one row
            given: Any = inputs_embeds if input_ids is None else input_ids
            before = 0 if past_key_values is None else past_key_values.get_seq_length()
            self._within_context(int(before) + given.shape[1])
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        last = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(found.last_hidden_state[:, last])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=found.past_key_values
        )

    def _within_context(self, tokens: int) -> None:
        config = self.config
        if tokens > config.seq_length and (config.use_dynamic_ntk or config.use_logn_attn):
            raise ValueError(
                f"{tokens} tokens, and seq_length is {config.seq_length}: the stretched positions "
                "and scaled queries of Qwen beyond it (use_dynamic_ntk, use_logn_attn) are not "
                "computed here; give fewer tokens, or turn both off in the configuration"
            )


QWenConfig.register_for_auto_class()
QWenLMHeadModel.register_for_auto_class("AutoModelForCausalLM")
