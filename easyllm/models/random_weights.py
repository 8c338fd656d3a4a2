"""Weights that are drawn from a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PretrainedConfig


class DrawnWeights:
    """Weights that are read from no file."""

    bytes_read = 0

    def __init__(self, seed: int):
        self.seed = seed
        self.files_read: set[Path] = set()

    def problems(
        self,
        own: Mapping[str, torch.Size],
        model: Mapping[str, torch.Size],
        shared: Mapping[str, str],
    ) -> list[str]:
        return []


class RandomWeights(DrawnWeights):
    """Fresh weights, each drawn from the seed and its own name.

    Matrices are normal with the configuration's ``initializer_range``, the embedding's padding
    row and biases 0, norms 1, as in transformers. No layout can change what is drawn.
    """

    def __init__(self, config: PretrainedConfig, seed: int):
        super().__init__(seed)
        self.config = config

    def tensor(self, name: str, shape: torch.Size) -> torch.Tensor:
        if len(shape) < 2:
            return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
        drawn = torch.empty(shape).normal_(
            0, self.config.initializer_range, generator=generator(self.seed, name)
        )
        if name.endswith("embed_tokens.weight") and self.config.pad_token_id is not None:
            drawn[self.config.pad_token_id] = 0
        return drawn


def generator(seed: int, name: str) -> torch.Generator:
    """The generator that draws the parameter ``name`` of a model made from ``seed``."""
    own = hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(own, "big", signed=True))
