"""Baichuan and Baichuan2, 7B and 13B (``BaichuanForCausalLM``), as Llama's own modules.

The 7B models have rotary positions, the 13B ones ALiBi; Baichuan2 normalises the rows of its
head. This file and the one that it imports need torch and transformers only: an exported model
carries a copy of them, so that ``trust_remote_code=True`` runs it where easyllm is not installed.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel, PretrainedConfig
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaAttention, repeat_kv

from .both_transformers import PublishedNames, from_fields

FUSED = {".self_attn.W_pack.": (".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.v_proj.")}
"""Tensors of the files that hold the rows of several of Llama's parameters."""
BAICHUAN2_TOKENS = 125696
"""The vocabulary by which the published Baichuan2 is distinguished from Baichuan, whose
``config.json`` looks alike."""


@from_fields
class BaichuanConfig(PretrainedConfig):
    """The published keys, and two that say what the published files leave to be guessed."""

    model_type = "baichuan"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    vocab_size: int = 64000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    hidden_act: str = "silu"
    max_position_embeddings: int | None = None
    model_max_length: int | None = None
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    z_loss_weight: float | int = 0.0
    alibi: bool | None = None
    """Positions by ALiBi instead of rotary ones; where absent, those without
    ``max_position_embeddings`` have it."""
    norm_head: bool | None = None
    """Whether the head's rows are normalised; where absent, by the vocabulary."""
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs: Any) -> None:
        if hasattr(PretrainedConfig, "__post_init__"):
            super().__post_init__(**kwargs)
        if self.alibi is None:
            self.alibi = self.max_position_embeddings is None
        if self.norm_head is None:
            self.norm_head = self.vocab_size == BAICHUAN2_TOKENS
        if self.model_max_length is None:
            self.model_max_length = self.max_position_embeddings or 4096
        if self.max_position_embeddings is None:
            self.max_position_embeddings = self.model_max_length
        if self.z_loss_weight:
            raise ValueError(f"z_loss_weight={self.z_loss_weight}: only 0, the published value")
        if self.norm_head and self.tie_word_embeddings:
            raise ValueError("norm_head with tie_word_embeddings: no published Baichuan has both")
        self.auto_map = {
            "AutoConfig": "modeling_baichuan.BaichuanConfig",
            "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
        }

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        if self.alibi:  # what reads the published files tells the 13B models by its absence
            values.pop("max_position_embeddings", None)
        return values

    def modern(self) -> LlamaConfig:
        """The same model in Llama's terms, but for ALiBi and the normalised head."""
        return LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_attention_heads,
            hidden_act=self.hidden_act,
            max_position_embeddings=self.max_position_embeddings or 0,
            rms_norm_eps=self.rms_norm_eps,
            initializer_range=self.initializer_range,
            tie_word_embeddings=self.tie_word_embeddings,
            use_cache=self.use_cache,
            pad_token_id=self.pad_token_id,
            bos_token_id=self.bos_token_id,
            eos_token_id=self.eos_token_id,
            dtype=self.dtype,
        )


def alibi_slopes(heads: int) -> torch.Tensor:
    """By head, what a key's score loses for each token that it lies behind the query, fp32.

    ALiBi (Press et al., 2022): a geometric sequence that starts at its own ratio
    2^(-8/heads) for powers of two; other numbers take that of the power below, and the rest
    every other slope of the power above.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    between = [2 ** (-4 * (head + 1) / power) for head in range(0, 2 * power, 2)]
    return torch.tensor(slopes + between[: heads - power], dtype=torch.float32)


class NoRotary(nn.Module):
    """In place of rotary positions: turns by nothing."""

    def forward(
        self, hidden: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return hidden.new_ones(1, 1, 1), hidden.new_zeros(1, 1, 1)


class NormHead(nn.Linear):
    """A head whose rows have length 1 in all that is computed with it."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(hidden, normal_rows(self.weight))


def normal_rows(weight: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(weight.float()).to(weight.dtype)


class AlibiAttention(LlamaAttention):
    """Llama's attention with ALiBi, for any cache whose tokens stand in their order, and for the
    pages of continuous batching, which holds several sequences in a row."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Any = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        rows, tokens, _ = hidden_states.shape
        query, key, value = (
            project(hidden_states).view(rows, tokens, -1, self.head_dim).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        pages = kwargs.get("cache")
        if pages is None:
            behind = self.behind(tokens, key.shape[2], query.device)
        else:
            key, value = pages.update(key, value, self.layer_idx, kwargs)
            at = places_in(kwargs["cu_seq_lens_k"], key.shape[2])
            behind = at - kwargs["position_ids"][0].unsqueeze(1)
        found = nn.functional.scaled_dot_product_attention(
            query,
            repeat_kv(key, self.num_key_value_groups),
            repeat_kv(value, self.num_key_value_groups),
            attn_mask=self.bias(behind, attention_mask, query),
        )
        return self.o_proj(found.transpose(1, 2).flatten(2)), None

    @staticmethod
    def behind(queries: int, keys: int, device: torch.device) -> torch.Tensor:
        """Each key's place less each query's, ``(queries, keys)``, the last of both the same."""
        places = torch.arange(keys, device=device)
        return places - places[keys - queries :].unsqueeze(1)

    def bias(
        self, behind: torch.Tensor, mask: torch.Tensor | None, like: torch.Tensor
    ) -> torch.Tensor:
        """What is added to the scores: ``(rows or 1, heads, queries, keys)``."""
        slopes = alibi_slopes(self.config.num_attention_heads).to(like.device)
        least = torch.finfo(like.dtype).min
        bias = (slopes[:, None, None] * behind).masked_fill(behind > 0, least).to(like.dtype)[None]
        if mask is None:
            return bias
        if mask.dim() == 2:  # as flash attention takes it: where a row is not padding
            mask = mask[:, None, None, :].bool()
        if mask.dtype is torch.bool:
            return bias.masked_fill(~mask, least)
        return bias.masked_fill(mask < 0, least)


def places_in(begins: torch.Tensor, count: int) -> torch.Tensor:
    """The place of each of ``count`` keys in its sequence; sequences lie end to end, and
    ``begins`` is where each begins and where the last ends."""
    places = torch.arange(count, device=begins.device)
    sequence = torch.bucketize(places, begins[1:], right=True).clamp(max=len(begins) - 2)
    return places - begins[sequence]


class BaichuanForCausalLM(PublishedNames, GenerationMixin):
    config_class = BaichuanConfig
    base_model_prefix = "model"
    FUSED = FUSED
    _no_split_modules = ["LlamaDecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True  # of ALiBi the scores need torch's attention all the same
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: BaichuanConfig):
        super().__init__(config)
        modern = config.modern()
        modern._attn_implementation = config._attn_implementation
        self.model = LlamaModel(modern)
        if config.alibi:
            self.model.rotary_emb = NoRotary()
            for index, layer in enumerate(self.model.layers):
                layer.self_attn = AlibiAttention(modern, index)
        head = NormHead if config.norm_head else nn.Linear
        self.lm_head = head(config.hidden_size, config.vocab_size, bias=False)
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


BaichuanConfig.register_for_auto_class()
BaichuanForCausalLM.register_for_auto_class("AutoModelForCausalLM")
