"""Random weights, drawn as transformers' model draws them."""

from __future__ import annotations

import re

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from easyllm.errors import UserError
from easyllm.models.decoders.shrink import shrunk
from easyllm.models.decoders.skeleton import Skeleton, initialize
from easyllm.models.random_weights import DrawnWeights, generator
from easyllm.spec.roles import ModelShape

SMALLEST = ModelShape(
    layers=2, hidden_size=64, heads=4, kv_heads=2, head_dim=16, intermediate_size=64,
    vocab_size=128, max_positions=64, tied=False,
)  # fmt: skip


class FreshWeights(DrawnWeights):
    """Each layer is drawn by itself, from the seed and its name, so that no layout can change
    it."""

    def __init__(self, skeleton: Skeleton, seed: int, spread: float = 0.0):
        """With ``spread`` the matrices are normal with this standard deviation, to test with."""
        super().__init__(seed)
        self.skeleton, self.spread = skeleton, spread
        self.layers = [spec.name for spec in skeleton.specs() if spec.tied_to is None]
        self.constants: dict[str, torch.Tensor] | None = None
        self.drawn: tuple[str, dict[str, torch.Tensor]] = "", {}

    def tensor(self, name: str, shape: torch.Size) -> torch.Tensor:
        layer = next(layer for layer in self.layers if name.startswith(f"{layer}."))
        if self.drawn[0] != layer:
            self.drawn = layer, self._draw(layer)
        return self.drawn[1][name.removeprefix(f"{layer}.")]

    @torch.no_grad()
    def _draw(self, layer: str) -> dict[str, torch.Tensor]:
        module = self.skeleton.build(layer).to_empty(device="cpu")
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(self.seed, layer).initial_seed())
            for part in module.modules():
                initialize(self.skeleton.model, layer, part)
            for parameter in module.parameters():
                if self.spread and parameter.ndim >= 2:
                    parameter.normal_(0, self.spread)
        drawn = dict(module.state_dict())
        for name, tensor in drawn.items():
            if tensor.is_floating_point() and tensor.isnan().any():
                drawn[name] = self._constant(f"{layer}.{name}", tensor.shape)
        return drawn

    def _constant(self, name: str, shape: torch.Size) -> torch.Tensor:
        """The value that the constructor gives a tensor, which does not depend on the model's size,
        such as the coefficients of an activation. Raises UserError where it does."""
        if self.constants is None:
            config = shrunk(self.skeleton.config.to_dict(), SMALLEST)
            self.constants = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(**config)
            ).state_dict()
        place = re.sub(r"\.\d+\.", ".0.", name, count=1)  # each layer has the same
        found: torch.Tensor | None = self.constants.get(place)
        if found is None or found.shape != shape or found.isnan().any():
            raise UserError(
                f"model.init=random: transformers gives {name} no first value; give model.path"
            )
        return found
