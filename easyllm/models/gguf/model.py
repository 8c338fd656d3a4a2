"""The model of a GGUF file as a folder in Hugging Face's format.

transformers' own reader (5.19) ignores scaled rotary positions, biases of ``llama`` and Qwen3's
``attention.key_length`` without a warning. So files of architectures that can be trained are read
here, and a file is refused unless every tensor in it is used.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easyllm.errors import Unusable
from easyllm.files import write_json
from easyllm.models.gguf import names, rope
from easyllm.models.gguf.header import Header, TensorInfo
from easyllm.models.gguf.rope import REMEDY
from easyllm.printable import some_of

SHARD = 5e9
"""Most bytes of a file of converted weights."""
ENDS = ("eot_token_id", "eom_token_id")
"""Tokens that end generation besides the end of sequence."""
READ = ("llama", "qwen2", "qwen3")
"""Architectures that are read here; transformers reads the others."""


def convert(header: Header, folder: Path) -> None:
    """Write configuration and weights into ``folder``, in float32, which can represent every
    quantised weight exactly. Raises UserError for a file that cannot be read exactly."""
    if header.architecture in READ:
        _write(header, folder)
    else:
        _by_transformers(header.file, folder)


def config(header: Header) -> dict[str, Any]:
    """The configuration of a model of ``READ``. Raises UserError."""
    of = header.of_model
    _refuse(header)
    heads = _number(header, "attention.head_count")
    width = _number(header, "embedding_length")
    head_dim = of("attention.key_length") or of("rope.dimension_count") or width // heads
    given = header.tensors.get(names.ROPE_FACTORS)
    factors = None if given is None else _values(header, given).tolist()
    found: dict[str, Any] = {
        "model_type": header.architecture,
        "hidden_size": width,
        "intermediate_size": _number(header, "feed_forward_length"),
        "num_hidden_layers": _number(header, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": of("attention.head_count_kv") or heads,
        "max_position_embeddings": _number(header, "context_length"),
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
        "vocab_size": _tensor(header, "token_embd.weight").shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "rope_parameters": rope.parameters(header, head_dim, factors),
        "dtype": "float32",
    }
    biased = "blk.0.attn_output.bias" in header.tensors
    if header.architecture == "llama":
        found |= {"attention_bias": biased, "mlp_bias": "blk.0.ffn_up.bias" in header.tensors}
    if header.architecture == "qwen3":
        found["attention_bias"] = biased
    if header.architecture != "qwen2":
        found["head_dim"] = head_dim
    elif head_dim * heads != width:
        raise _unusable(header, f"has heads of {head_dim}, which qwen2 does not have")
    return found | {
        f"{ours}_token_id": number
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        if isinstance(number := header.of_tokenizer(f"{theirs}_token_id"), int)
    }


def _refuse(header: Header) -> None:
    """Raises UserError where the file uses the architecture differently from transformers."""
    of = header.of_model
    if of("expert_count"):
        raise _unusable(header, f"has {of('expert_count')} experts, which are not read")
    if isinstance(of("attention.head_count_kv"), list) or isinstance(
        of("attention.head_count"), list
    ):
        raise _unusable(header, "has layers of different numbers of heads")
    if of("attention.causal") is False:
        raise _unusable(header, "is not a generating model: attention.causal=false")
    key, value, turned = (
        of(name)
        for name in ("attention.key_length", "attention.value_length", "rope.dimension_count")
    )
    sizes = {size for size in (key, value, turned) if size is not None}
    if len(sizes) > 1:
        raise _unusable(header, f"has keys, values and rotary positions of {sorted(sizes)}")


def _write(header: Header, folder: Path) -> None:
    import torch
    from transformers import AutoConfig

    from easyllm.models import weights

    values = config(header)
    shapes = _shapes(header, values)
    model_type = values.pop("model_type")
    made = AutoConfig.for_model(model_type, **values)
    made.architectures = [
        {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[
            model_type
        ]
    ]
    made.save_pretrained(folder)
    special = {key: value for key, value in values.items() if key.endswith("_token_id")}
    ends = [special.get("eos_token_id"), *map(header.of_tokenizer, ENDS)]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    if len(ends) > 1:
        special["eos_token_id"] = ends
    write_json(folder / "generation_config.json", special)
    sizes = {name: 4 * torch.Size(shape).numel() for name, shape in shapes.items()}
    plan = weights.plan_shards(sizes, SHARD)
    files: dict[str, str] = {}
    for number, group in enumerate(plan):
        file = weights.shard_name(number, len(plan))
        tensors = {}
        for name in group:
            read = torch.from_numpy(_values(header, header.tensors[names.in_gguf(name)]))
            tensors[name] = names.turned(
                read, name, {**values, "model_type": model_type}, back=True
            )
        weights.write_shard(folder / file, tensors)
        files |= dict.fromkeys(group, file)
    weights.write_index(folder, files, sizes)


def _shapes(header: Header, values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The parameters of the model by name; the file must hold exactly these."""
    from easyllm.models.families import family_named

    family = family_named(values["model_type"])
    param_specs = family and family.param_specs(values)
    assert param_specs, "READ names shipped families"
    wanted = {
        name: tuple(shape) for layer in param_specs for name, shape in layer.parameters.items()
    }
    held = {name: info.shape for name, info in header.tensors.items()}
    held.pop(names.ROPE_FACTORS, None)
    asked = {names.in_gguf(name): shape for name, shape in wanted.items()}
    wrong = [name for name in asked if held.get(name) != asked[name]]
    if wrong:
        raise _unusable(
            header,
            f"its {wrong[0]} has the shape {held.get(wrong[0])}, and {values['model_type']} has "
            f"{asked[wrong[0]]}",
        )
    if spare := sorted(held.keys() - asked.keys()):
        what = f"holds {some_of(spare)}, which {values['model_type']} does not have"
        raise _unusable(header, what)
    return wanted


def _values(header: Header, info: TensorInfo) -> Any:
    """A tensor's values, a float32 numpy array of ``info.shape``."""
    import numpy as np
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        kind = GGMLQuantizationType(info.type)
        block, size = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise _unusable(header, f"holds a tensor of type {info.type}, which is not known") from None
    nbytes = info.elements // block * size
    mapped = np.memmap(header.file, mode="r", dtype=np.uint8)
    data = mapped[info.start : info.start + nbytes]
    if len(data) < nbytes:
        raise _unusable(header, f"ends at {len(mapped):,} bytes, before its last tensor")
    plain = {GGMLQuantizationType.F32: "<f4", GGMLQuantizationType.F16: "<f2"}
    try:
        if kind in plain:
            values = data.view(plain[kind]).astype(np.float32)
        else:
            values = dequantize(data.reshape(*info.shape[:-1], -1), kind)
    except (NotImplementedError, ValueError) as error:
        raise _unusable(
            header, f"its tensors of type {kind.name} cannot be read: {error}"
        ) from None
    return np.ascontiguousarray(values.reshape(info.shape), dtype=np.float32)


def _by_transformers(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    load: Any = AutoModelForCausalLM.from_pretrained
    try:
        model, report = load(
            str(file.parent),
            gguf_file=file.name,
            local_files_only=True,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )
    except (ValueError, LookupError, OSError, NotImplementedError, struct.error) as error:
        raise Unusable(file, f"transformers cannot read it: {error}", REMEDY) from error
    if missing := sorted(report["missing_keys"]):
        names_ = some_of(missing)
        raise Unusable(file, f"transformers does not find in it {names_}", REMEDY)
    model.save_pretrained(folder)


def _tensor(header: Header, name: str) -> TensorInfo:
    if name not in header.tensors:
        raise _unusable(header, f"holds no {name}")
    return header.tensors[name]


def _number(header: Header, key: str) -> int:
    found = header.of_model(key)
    if not isinstance(found, int) or found < 1:
        raise _unusable(header, f"{header.architecture}.{key} is {found}")
    return found


def _unusable(header: Header, what: str) -> Unusable:
    return Unusable(header.file, what, REMEDY)
