"""A small model of every type of decoder that transformers knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from easyllm.models.decoders.describe import known_types
from easyllm.models.decoders.family import Decoder
from easyllm.spec.roles import ModelShape

SHAPE = ModelShape(
    layers=4, hidden_size=64, heads=4, kv_heads=2, head_dim=16, intermediate_size=96,
    vocab_size=512, max_positions=256, tied=False,
)  # fmt: skip
GIVEN: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 1.0},
    "cohere2_moe": {"logit_scale": 1.0},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {
                "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [22, 22, 20],
            }
        }
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "n_routed_experts": 4},
    "dots1": {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1},
    "gemma4_text": {"hidden_size_per_layer_input": 0},
    "granite": {"embedding_multiplier": 3.0, "residual_multiplier": 0.7, "logits_scaling": 2.0},
    "ministral": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
                  "head_dim": 128},
}  # fmt: skip
"""What the default configuration of a type does not have, or has in a way that hides mistakes."""
DESCRIBED_BY_HAND = ("llama", "mistral", "qwen2", "qwen3")
QUICK = (
    "gemma3_text", "glm4", "gpt_oss", "granite", "mixtral", "olmo3", "phi", "qwen3_5_text",
    "qwen3_moe", "smollm3",
)  # fmt: skip
"""Some that are tested each time."""


def small(model_type: str, shape: ModelShape = SHAPE) -> dict[str, Any]:
    """The configuration of a small model."""
    given = GIVEN.get(model_type, {})
    return Decoder(type=model_type).shaped({"model_type": model_type, **given}, shape)


def save(model_type: str, folder: Path, shape: ModelShape = SHAPE) -> Path:
    """Write a model with drawn weights into ``folder``, as transformers does; returns it."""
    values = small(model_type, shape)
    torch.manual_seed(7)
    attention = Decoder(type=model_type).attentions(values)[0]
    made = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**values), dtype=torch.float32, attn_implementation=attention
    )
    for name, parameter in made.named_parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.1)
        elif "norm" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    for name, buffer in made.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer += 0.1 * torch.randn(buffer.shape)
    made.save_pretrained(folder)
    return folder


def all_types() -> list[str]:
    return sorted(known_types())


def published(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return values
