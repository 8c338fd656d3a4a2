"""A small model of every family in its published form, and what must come out of it.

Where transformers has the model its own class is the reference; Qwen and Baichuan are written
out here from their published architectures, plainly, over the tensors of their files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import embedding, linear, normalize, silu
from transformers import AutoConfig, AutoModelForCausalLM

TOKENS = 512
_LIKE_LLAMA = {
    "vocab_size": TOKENS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
}
_BAICHUAN = {
    **_LIKE_LLAMA,
    "model_type": "baichuan",
    "hidden_act": "silu",
    "pad_token_id": 0,
    "initializer_range": 0.02,
}
_ALIBI = {
    **{key: value for key, value in _BAICHUAN.items() if key != "max_position_embeddings"},
    "model_max_length": 128,
    # not a power of two
    "hidden_size": 40,
    "num_attention_heads": 5,
}
SMALL: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_LIKE_LLAMA},
    "llama3": {
        "model_type": "llama",
        **_LIKE_LLAMA,
        "num_key_value_heads": 2,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "smollm2": {
        "model_type": "llama",
        **_LIKE_LLAMA,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "pad_token_id": 2,
    },
    "mistral": {
        "model_type": "mistral",
        **_LIKE_LLAMA,
        "num_key_value_heads": 2,
        "sliding_window": 9,
    },
    "qwen2": {"model_type": "qwen2", **_LIKE_LLAMA, "num_key_value_heads": 2},
    "qwen2_5_tied": {
        "model_type": "qwen2",
        **_LIKE_LLAMA,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "qwen3": {"model_type": "qwen3", **_LIKE_LLAMA, "num_key_value_heads": 2, "head_dim": 16},
    "qwen": {
        **{key: _LIKE_LLAMA[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers",
                                             "num_attention_heads", "max_position_embeddings",
                                             "tie_word_embeddings")},
        "model_type": "qwen",
        "intermediate_size": 128,
        "kv_channels": 8,
        "seq_length": 128,
        "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "no_bias": True,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "use_flash_attn": "auto",
        "initializer_range": 0.02,
    },
    "baichuan_7b": _BAICHUAN,
    "baichuan_13b": _ALIBI,
    # told by its vocabulary where nothing else is said
    "baichuan2_7b": {**_BAICHUAN, "norm_head": True},
    "baichuan2_13b": {**_ALIBI, "norm_head": True},
}  # fmt: skip
EMPTY: Mapping[str, Any] = {}
WRITTEN_OUT = [name for name, config in SMALL.items() if config["model_type"] in
               ("qwen", "baichuan")]  # fmt: skip
"""Those that transformers does not have."""


def save(
    name: str, folder: Path, dtype: torch.dtype = torch.float32, over: Mapping[str, Any] = EMPTY
) -> Path:
    """Write the model's published files into ``folder``, ``over`` laid over its configuration;
    returns it.

    Weights are drawn: as they come, biases of zero and norms of one would hide mistakes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {**SMALL[name], **over}
    torch.manual_seed(7)
    if name in WRITTEN_OUT:
        shapes = _qwen_shapes(config) if name == "qwen" else _baichuan_shapes(config)
        tensors = {key: (0.3 * torch.randn(shape)).to(dtype) for key, shape in shapes.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        classes = {"qwen": "QWenLMHeadModel", "baichuan": "BaichuanForCausalLM"}
        published = {**config, "architectures": [classes[config["model_type"]]]}
        (folder / "config.json").write_text(json.dumps(published), "utf-8")
        return folder
    values = {key: value for key, value in config.items() if key != "model_type"}
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **values))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    made.to(dtype).save_pretrained(folder)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder by its name in the files."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


class Reference:
    """A saved model as published: logits, and gradients by the names of its files."""

    def __init__(self, name: str, folder: Path):
        self.name, self.config = name, SMALL[name]
        self.weights: dict[str, torch.Tensor]
        self.network = None
        if name in WRITTEN_OUT:
            self.weights = {k: v.requires_grad_() for k, v in tensors(folder).items()}
        else:
            self.network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            self.weights = dict(self.network.named_parameters())

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """``(rows, tokens, vocabulary)`` of token ids ``(rows, tokens)``."""
        if self.network is not None:
            found: torch.Tensor = self.network(input_ids=ids, use_cache=False).logits
            return found
        written = _qwen if self.name == "qwen" else _baichuan
        return written(self.weights, self.config, ids)


def _qwen_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, gate = config["hidden_size"], config["intermediate_size"] // 2
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (TOKENS, width)}
    for layer in range(config["num_hidden_layers"]):
        at = f"transformer.h.{layer}"
        shapes |= {
            f"{at}.ln_1.weight": (width,),
            f"{at}.attn.c_attn.weight": (3 * width, width),
            f"{at}.attn.c_attn.bias": (3 * width,),
            f"{at}.attn.c_proj.weight": (width, width),
            f"{at}.ln_2.weight": (width,),
            f"{at}.mlp.w1.weight": (gate, width),
            f"{at}.mlp.w2.weight": (gate, width),
            f"{at}.mlp.c_proj.weight": (width, gate),
        }
    return shapes | {"transformer.ln_f.weight": (width,), "lm_head.weight": (TOKENS, width)}


def _baichuan_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, gate = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (TOKENS, width)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm.weight": (width,),
            f"{at}.self_attn.W_pack.weight": (3 * width, width),
            f"{at}.self_attn.o_proj.weight": (width, width),
            f"{at}.post_attention_layernorm.weight": (width,),
            f"{at}.mlp.gate_proj.weight": (gate, width),
            f"{at}.mlp.up_proj.weight": (gate, width),
            f"{at}.mlp.down_proj.weight": (width, gate),
        }
    return shapes | {"model.norm.weight": (width,), "lm_head.weight": (TOKENS, width)}


Weights = dict[str, torch.Tensor]


def _qwen(weights: Weights, config: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    eps, heads = config["layer_norm_epsilon"], config["num_attention_heads"]
    hidden = embedding(ids, weights["transformer.wte.weight"])
    for layer in range(config["num_hidden_layers"]):
        at = f"transformer.h.{layer}"
        normed = _rms(hidden, weights[f"{at}.ln_1.weight"], eps)
        mixed = linear(normed, weights[f"{at}.attn.c_attn.weight"],
                       weights[f"{at}.attn.c_attn.bias"])  # fmt: skip
        query, key, value = (_by_head(part, heads) for part in mixed.chunk(3, dim=-1))
        query, key = (
            _turned(query, config["rotary_emb_base"]),
            _turned(key, config["rotary_emb_base"]),
        )
        found = _attend(query, key, value, torch.zeros(heads))
        hidden = hidden + linear(found, weights[f"{at}.attn.c_proj.weight"])
        normed = _rms(hidden, weights[f"{at}.ln_2.weight"], eps)
        inner = linear(normed, weights[f"{at}.mlp.w1.weight"]) * silu(
            linear(normed, weights[f"{at}.mlp.w2.weight"])
        )
        hidden = hidden + linear(inner, weights[f"{at}.mlp.c_proj.weight"])
    return linear(_rms(hidden, weights["transformer.ln_f.weight"], eps), weights["lm_head.weight"])


def _baichuan(weights: Weights, config: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    eps, heads = config["rms_norm_eps"], config["num_attention_heads"]
    rotary = "max_position_embeddings" in config
    hidden = embedding(ids, weights["model.embed_tokens.weight"])
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        normed = _rms(hidden, weights[f"{at}.input_layernorm.weight"], eps)
        packed = linear(normed, weights[f"{at}.self_attn.W_pack.weight"])
        query, key, value = (_by_head(part, heads) for part in packed.chunk(3, dim=-1))
        if rotary:
            query, key = _turned(query, 10000), _turned(key, 10000)
        slopes = torch.zeros(heads) if rotary else torch.tensor(paper_slopes(heads))
        found = _attend(query, key, value, slopes)
        hidden = hidden + linear(found, weights[f"{at}.self_attn.o_proj.weight"])
        normed = _rms(hidden, weights[f"{at}.post_attention_layernorm.weight"], eps)
        inner = silu(linear(normed, weights[f"{at}.mlp.gate_proj.weight"])) * linear(
            normed, weights[f"{at}.mlp.up_proj.weight"]
        )
        hidden = hidden + linear(inner, weights[f"{at}.mlp.down_proj.weight"])
    head = weights["lm_head.weight"]
    if config.get("norm_head"):
        head = normalize(head)
    return linear(_rms(hidden, weights["model.norm.weight"], eps), head)


def paper_slopes(heads: int) -> list[float]:
    """The slopes of Press et al. (2022), whose rule for other numbers calls itself."""
    if math.log2(heads).is_integer():
        first = 2 ** (-8 / heads)
        return [first ** (head + 1) for head in range(heads)]
    power = 2 ** math.floor(math.log2(heads))
    return paper_slopes(power) + paper_slopes(2 * power)[0::2][: heads - power]


def _rms(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * hidden / torch.sqrt(hidden.pow(2).mean(-1, keepdim=True) + eps)


def _by_head(part: torch.Tensor, heads: int) -> torch.Tensor:
    return part.unflatten(-1, (heads, -1)).transpose(1, 2)


def _turned(part: torch.Tensor, base: float) -> torch.Tensor:
    """Rotary positions: pairs half a head apart are turned by place / base^(2i/size)."""
    size, half = part.shape[-1], part.shape[-1] // 2
    angles = torch.arange(part.shape[2])[:, None] * base ** (-torch.arange(half) * 2 / size)
    cos, sin = angles.cos(), angles.sin()
    first, second = part[..., :half], part[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slopes: torch.Tensor
) -> torch.Tensor:
    tokens = query.shape[2]
    scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
    places = torch.arange(tokens)
    scores = scores - slopes[:, None, None] * (places[:, None] - places)
    scores = scores.masked_fill(places[:, None] < places, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
