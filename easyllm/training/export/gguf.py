"""A model as one GGUF file, which llama.cpp runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.quants import quantize

from easyllm.data.tokenizers.encode import load_tokenizer
from easyllm.data.tokenizers.select_backend import sample, vocabulary
from easyllm.errors import UserError
from easyllm.files import atomic_dir
from easyllm.models.gguf import names, rope
from easyllm.models.gguf.writing import metadata
from easyllm.paths import RunPaths
from easyllm.progress import progress
from easyllm.spec.run import RunSpec

TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
OF_DTYPE = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
BLOCK = 32
"""Numbers that share one scale in Q8_0."""


def export(
    weights: Path,
    target: Path,
    run: RunSpec,
    config: Mapping[str, Any],
    shapes: Mapping[str, torch.Size],
    read: Callable[[str], torch.Tensor],
) -> dict[str, Any]:
    """Write ``target/<run.name>.gguf`` from the tokenizer beside ``weights``, ``config`` and the
    parameters. ``shapes`` has the parameters' shapes by name, and ``read`` reads one parameter at a
    time.

    Returns the stage's metrics. Raises UserError for a model that llama.cpp would compute
    differently.
    """
    described = model(config)
    kind, file_type = TYPES[run.export.gguf_type or OF_DTYPE[config["dtype"]]]
    tokenizer = load_tokenizer(weights)
    plain = [*sample([]), *vocabulary(tokenizer)] if tokenizer.is_fast else []
    named = sample(list(tokenizer.get_added_vocab()))[len(sample([])) :] if plain else []
    spoken, differs = metadata(tokenizer, config["vocab_size"], [*plain, *named])
    spoken |= _ends(weights, spoken)
    tensors = dict(_tensors(config, shapes))
    with atomic_dir(target) as temporary:
        file = temporary / RunPaths(run).gguf.name
        writer = GGUFWriter(file, names.ARCHITECTURES[config["model_type"]])
        _add(writer, {f"{writer.arch}.{key}": value for key, value in described.items()})
        _add(writer, {f"tokenizer.{key}": value for key, value in spoken.items()})
        writer.add_type("model")
        if "phi3" not in run.name.lower().replace("-", ""):
            # llama.cpp takes a model with this name for Phi-3, whose special tokens absorb
            # whitespace
            writer.add_name(run.name)
        writer.add_file_type(file_type)
        writer.add_quantization_version(2)
        for name, (shape, of) in tensors.items():
            _declare(writer, name, shape, _type(shape, kind, of))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        size = sum(info.nbytes for info in writer.tensors[0].values())
        with progress("export", size, "B") as bar:
            for name, (shape, of) in tensors.items():
                data = _encoded(name, _read(config, read, of, name), _type(shape, kind, of))
                writer.write_tensor_data(data)
                bar.update(data.nbytes)
        writer.close()
        facts = {"file": file.name, "tensors": len(tensors), "bytes": file.stat().st_size}
    return facts | {"type": kind.name, "pre_tokenizer": spoken["ggml.pre"]} | _difference(differs)


def model(config: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a configuration, with keys under its architecture. Raises UserError for what
    llama.cpp's architecture cannot compute."""
    model_type = config["model_type"]
    if model_type not in names.ARCHITECTURES:
        known = ", ".join(names.ARCHITECTURES)
        raise UserError(
            f"export.format=gguf: the models that can be written are {known}, not {model_type}; "
            "give export.layout=canonical, which writes Qwen and Baichuan as one of them, or "
            "export.format=safetensors"
        )
    heads, width = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or width // heads
    if model_type == "qwen2" and heads * head_dim != width:
        raise _cannot(f"has no qwen2 of {heads} heads of {head_dim} in {width}")
    if model_type.startswith("qwen") and config.get("attention_bias"):
        raise _cannot(f"has no {model_type} with attention_bias")
    if config.get("hidden_act", "silu") != "silu":
        raise _cannot(f"has no {model_type} with hidden_act={config['hidden_act']}")
    parameters = config["rope_parameters"]
    if model_type.startswith("qwen") and parameters.get("rope_type") == "llama3":
        raise _cannot(f"has no {model_type} with rotary positions of Llama 3")
    return {
        "block_count": config["num_hidden_layers"],
        "context_length": _context(config),
        "embedding_length": width,
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads") or heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": head_dim,
        "vocab_size": config["vocab_size"],
    } | {f"rope.{key}": value for key, value in rope.metadata(parameters).items()}


def _context(config: Mapping[str, Any]) -> int:
    """The context length in the file: at most the sliding window, because llama.cpp has none for
    these architectures. Within the window both compute the same."""
    positions, window = config["max_position_embeddings"], config.get("sliding_window")
    layers = config.get("layer_types")
    if layers is not None and "sliding_attention" not in layers:
        window = None
    return int(min(positions, window or positions))


def _ends(weights: Path, spoken: Mapping[str, Any]) -> dict[str, int]:
    """The tokens that end generation besides the end of sequence, such as a turn's end."""
    try:
        stated = json.loads((weights / "generation_config.json").read_text("utf-8"))
    except FileNotFoundError:
        return {}
    ends = stated.get("eos_token_id")
    others = [
        number
        for number in (ends if isinstance(ends, list) else [ends])
        if number is not None and number != spoken.get("ggml.eos_token_id")
    ]
    return {
        f"ggml.{which}_token_id": number
        for which, number in zip(("eot", "eom"), others, strict=False)
    }


def _tensors(
    config: Mapping[str, Any], shapes: Mapping[str, torch.Size]
) -> Iterator[tuple[str, tuple[Any, str]]]:
    """GGUF's names, each with the shape and the name in the model, empty for a computed tensor."""
    for name, shape in shapes.items():
        if not (name == "lm_head.weight" and config.get("tie_word_embeddings")):
            yield names.in_gguf(name), (tuple(shape), name)
    if factors := _factors(config):
        yield names.ROPE_FACTORS, ((len(factors),), "")


def _factors(config: Mapping[str, Any]) -> list[float] | None:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return rope.factors(config["rope_parameters"], head_dim)


def _read(
    config: Mapping[str, Any], read: Callable[[str], torch.Tensor], of: str, name: str
) -> torch.Tensor:
    if name == names.ROPE_FACTORS:
        return torch.tensor(_factors(config), dtype=torch.float32)
    turned: torch.Tensor = names.turned(read(of), of, config)
    return turned


def _type(shape: tuple[int, ...], kind: GGMLQuantizationType, of: str) -> GGMLQuantizationType:
    """The type of a tensor in the file: vectors are float32, and blocks must divide rows."""
    if len(shape) < 2:
        return GGMLQuantizationType.F32
    if kind == GGMLQuantizationType.Q8_0 and shape[-1] % BLOCK:
        return GGMLQuantizationType.F16
    return kind


def _declare(
    writer: GGUFWriter, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType
) -> None:
    numbers = int(np.prod(shape))
    size = {
        GGMLQuantizationType.F32: 4 * numbers,
        GGMLQuantizationType.Q8_0: numbers // BLOCK * (BLOCK + 2),
    }.get(kind, 2 * numbers)
    writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kind)


def _encoded(name: str, tensor: torch.Tensor, kind: GGMLQuantizationType) -> Any:
    if kind == GGMLQuantizationType.BF16:
        return tensor.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
    values = tensor.float().contiguous().numpy()
    if kind == GGMLQuantizationType.F32:
        return values
    if kind == GGMLQuantizationType.Q8_0:
        return quantize(values, kind)
    if len(values) and float(np.abs(values).max()) > float(np.finfo(np.float16).max):
        raise UserError(
            f"export.gguf_type: {name} has values beyond float16's range; give "
            "export.gguf_type=bf16"
        )
    return values.astype(np.float16)


def _add(writer: GGUFWriter, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def _difference(differs: str | None) -> dict[str, str]:
    if differs is None:
        return {}
    print(f"export.format=gguf: llama.cpp differs beside special tokens: {differs}", flush=True)
    return {"differs": differs}


def _cannot(what: str) -> UserError:
    return UserError(f"export.format=gguf: llama.cpp {what}; give export.format=safetensors")
