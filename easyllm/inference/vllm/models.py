"""Baichuan and the first Qwen in vLLM, as vLLM's Llama and Qwen2 under other names.

Weights are read as they were published, queries, keys and values in one matrix. All layers are
vLLM's parallel ones, so tensor and pipeline parallelism, quantization and adapters are vLLM's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper

from easyllm.models.custom import modeling_baichuan, modeling_qwen

BAICHUAN = WeightsMapper(
    orig_to_new_substr=dict.fromkeys(modeling_baichuan.FUSED, ".self_attn.qkv_proj.")
)
QWEN = WeightsMapper(
    orig_to_new_substr={
        **{theirs: ours for ours, theirs in modeling_qwen.RENAMED.items()},
        **dict.fromkeys(modeling_qwen.FUSED, ".self_attn.qkv_proj."),
    }
)
"""Maps the names in the files to those of Llama and Qwen2 in vLLM."""
HEAD = "lm_head.weight"


class AlibiAttention(nn.Module):
    """Attention with ALiBi positions; each rank has the slopes of its own heads."""

    def __init__(
        self,
        config: Any,
        hidden_size: int,
        num_heads: int,
        *,
        quant_config: Any = None,
        cache_config: Any = None,
        prefix: str = "",
        **_: Any,
    ):
        super().__init__()
        ranks, rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
        heads, size = num_heads // ranks, hidden_size // num_heads
        slopes = modeling_baichuan.alibi_slopes(num_heads)[rank * heads : (rank + 1) * heads]
        self.qkv_proj = QKVParallelLinear(
            hidden_size,
            size,
            num_heads,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            hidden_size,
            hidden_size,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.o_proj",
        )
        self.attn = Attention(
            heads,
            size,
            size**-0.5,
            alibi_slopes=slopes.tolist(),
            cache_config=cache_config,
            quant_config=quant_config,
            prefix=f"{prefix}.attn",
        )

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """``hidden_states`` and the result are ``(tokens, hidden_size)``."""
        mixed, _ = self.qkv_proj(hidden_states)
        found: torch.Tensor = self.o_proj(self.attn(*mixed.chunk(3, dim=-1)))[0]
        return found


class AlibiLayer(LlamaDecoderLayer):
    def __init__(self, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config, prefix, attn_layer_type=AlibiAttention)


class BaichuanForCausalLM(LlamaForCausalLM):
    hf_to_vllm_mapper = LlamaForCausalLM.hf_to_vllm_mapper | BAICHUAN

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        config = vllm_config.model_config.hf_config
        super().__init__(
            vllm_config=vllm_config.with_hf_config(config.modern(), ["LlamaForCausalLM"]),
            prefix=prefix,
            layer_type=AlibiLayer if config.alibi else LlamaDecoderLayer,
        )
        self.norm_head = config.norm_head

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        if self.norm_head:
            weights = (
                (name, modeling_baichuan.normal_rows(tensor) if name == HEAD else tensor)
                for name, tensor in weights
            )
        return AutoWeightsLoader(self).load_weights(weights, mapper=BAICHUAN)


class QWenLMHeadModel(Qwen2ForCausalLM):
    hf_to_vllm_mapper = Qwen2ForCausalLM.hf_to_vllm_mapper | QWEN

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        config = vllm_config.model_config.hf_config
        super().__init__(
            vllm_config=vllm_config.with_hf_config(config.modern(), ["Qwen2ForCausalLM"]),
            prefix=prefix,
        )

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(weights, mapper=QWEN)
