"""Random weights, drawn as transformers' model draws them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from easyllm.models.decoders.skeleton import Skeleton, initialize
from easyllm.models.weights import generator


class FreshWeights:
    """Each layer is drawn by itself, from the seed and its name, so that no layout can change
    it."""

    bytes_read = 0

    def __init__(self, skeleton: Skeleton, seed: int, spread: float = 0.0):
        """With ``spread`` the matrices are normal with this standard deviation, to test with."""
        self.skeleton, self.seed, self.spread = skeleton, seed, spread
        self.layers = [spec.name for spec in skeleton.specs() if spec.tied_to is None]
        self.files_read: set[Path] = set()
        self.drawn: tuple[str, dict[str, torch.Tensor]] = "", {}

    def problems(
        self,
        own: Mapping[str, torch.Size],
        model: Mapping[str, torch.Size],
        shared: Mapping[str, str],
    ) -> list[str]:
        return []

    def tensor(self, name: str, shape: torch.Size) -> torch.Tensor:
        layer = next(layer for layer in self.layers if name.startswith(f"{layer}."))
        if self.drawn[0] != layer:
            self.drawn = layer, self._draw(layer)
        return self.drawn[1][name.removeprefix(f"{layer}.")]

    @torch.no_grad()
    def _draw(self, layer: str) -> dict[str, torch.Tensor]:
        module = self.skeleton.build(layer).to_empty(device="cpu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(self.seed, layer).initial_seed())
            for part in module.modules():
                initialize(self.skeleton.model, layer, part)
            for parameter in module.parameters():
                if self.spread and parameter.ndim >= 2:
                    parameter.normal_(0, self.spread)
        return dict(module.state_dict())
