"""Weights by parameter name: read from safetensors or drawn, and written as Hugging Face shards."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PretrainedConfig

from easyllm.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Weights(Protocol):
    """Where a model's parameters come from."""

    bytes_read: int
    """Bytes of tensors read from files so far."""

    def tensor(self, name: str, shape: torch.Size) -> torch.Tensor:
        """The parameter ``name``, in whatever dtype it is kept. Raises UserError."""
        ...


class WeightFiles:
    """The safetensors of a folder in Hugging Face's format; only what is asked for is read."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.bytes_read = 0
        self.files = _files_by_name(folder)

    def tensor(self, name: str, shape: torch.Size) -> torch.Tensor:
        if name not in self.files:
            remedy = (
                "give model.overrides.tie_word_embeddings=true if the head shares the embedding"
                if name == "lm_head.weight"
                else "the configuration and the weights are not of one model"
            )
            raise UserError(f"{self.folder} has no tensor {name} of shape {tuple(shape)}; {remedy}")
        with safe_open(self.files[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        if tensor.shape != shape:
            raise UserError(
                f"{self.files[name]}: {name} has shape {tuple(tensor.shape)}, the configuration "
                f"asks for {tuple(shape)}; take back what model.overrides changes, or give "
                "model.init=random"
            )
        self.bytes_read += tensor.nbytes
        return tensor

    def shapes(self) -> dict[str, torch.Size]:
        """The shape of every tensor, without reading it."""
        found = {}
        for name, file in self.files.items():
            with safe_open(file, framework="pt") as tensors:
                found[name] = torch.Size(tensors.get_slice(name).get_shape())
        return found

    def check(self, expected: Iterable[str], shared: Iterable[str] = ()) -> None:
        """Raise UserError where the files hold tensors that the model has no place for.

        ``shared`` are names that tied models may or may not repeat in their files.
        """
        spare = set(self.files) - set(expected) - set(shared)
        # tables of old checkpoints that every model computes by itself
        spare = {name for name in spare if not name.endswith("rotary_emb.inv_freq")}
        if spare:
            shown = ", ".join(sorted(spare)[:3])
            raise UserError(
                f"{self.folder} holds {len(spare)} tensors that the configuration has no place "
                f"for ({shown}); take back what model.overrides changes, or give model.init=random"
            )


def _files_by_name(folder: Path) -> dict[str, Path]:
    index, single = folder / INDEX, folder / SINGLE
    try:
        if index.exists():
            named = json.loads(index.read_text("utf-8"))["weight_map"]
            return {name: folder / file for name, file in named.items()}
        with safe_open(single, framework="pt") as file:
            return dict.fromkeys(file.keys(), single)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            f"model.path: {folder} has no readable {SINGLE} or {INDEX} ({error}); "
            "give a folder with safetensors weights, or model.init=random"
        ) from error


class RandomWeights:
    """Fresh weights, each drawn from the seed and its own name.

    Matrices are normal with the configuration's ``initializer_range``, the embedding's padding
    row and biases 0, norms 1, as in transformers. No layout can change what is drawn.
    """

    bytes_read = 0

    def __init__(self, config: PretrainedConfig, seed: int):
        self.config, self.seed = config, seed

    def tensor(self, name: str, shape: torch.Size) -> torch.Tensor:
        if len(shape) < 2:
            return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
        seed = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(seed, "big", signed=True))
        drawn = torch.empty(shape).normal_(0, self.config.initializer_range, generator=generator)
        if name.endswith("embed_tokens.weight") and self.config.pad_token_id is not None:
            drawn[self.config.pad_token_id] = 0
        return drawn


def fill(
    layer: nn.Module, name: str, weights: Weights, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """Give the layer called ``name`` its parameters, which are on the meta device."""
    for path, empty in list(layer.named_parameters()):
        owner, _, attribute = path.rpartition(".")
        value = weights.tensor(f"{name}.{path}", empty.shape).to(device=device, dtype=dtype)
        setattr(layer.get_submodule(owner), attribute, nn.Parameter(value))
    return layer.to(device)


def plan_shards(sizes: Mapping[str, int], limit: float) -> list[list[str]]:
    """Names in order, in groups of at most ``limit`` bytes; a larger tensor stands alone."""
    shards: list[list[str]] = []
    room = -math.inf
    for name, size in sizes.items():
        if size > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return shards


def shard_name(number: int, count: int) -> str:
    """File name of shard ``number`` (from 0) of ``count``."""
    return SINGLE if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"


def write_shard(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    # safetensors refuses views; transformers refuses files without the format
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors makes files that only their owner can read


def write_index(folder: Path, files: Mapping[str, str], sizes: Mapping[str, int]) -> None:
    """The index over several shards; a single one needs none."""
    if set(files.values()) != {SINGLE}:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": dict(sorted(files.items())),
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
