"""A family's layers, filled with weights and computed as training does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

import easyllm.models.custom  # noqa: F401
from easyllm.models.attention.documents import Documents
from easyllm.models.families import family_named
from easyllm.models.layers import tensor_shapes
from easyllm.models.random_weights import RandomWeights
from easyllm.models.weight_mapping import RowMapping
from easyllm.models.weights import WeightFiles, Weights, filled

CPU = torch.device("cpu")


class Assembled:
    def __init__(
        self, config: Any, weights: Weights | None = None, attention: str = "sdpa",
        changed: Callable[[nn.Module], Any] = lambda layer: None,
    ):  # fmt: skip
        """``changed`` is called with each decoder layer."""
        family = family_named(config.model_type)
        self.names: RowMapping = family.names(config) or RowMapping()
        specs = family.layers(config, attention)
        shapes = tensor_shapes(specs)
        if weights is None:
            weights = RandomWeights(config, 0)
        tied = {f"{s.name}.weight": f"{s.tied_to}.weight" for s in specs if s.tied_to}
        assert weights.problems(shapes, shapes, tied) == []
        layers = filled(specs, weights, torch.float32, CPU)
        for spec in specs:
            if spec.decoder:
                changed(layers[spec.name])
        self.modules = {spec.name: layers[spec.name] for spec in specs if not spec.tied_to}
        assembly = family.assembly(config, attention, None)
        self.stage: Any = assembly.assemble(specs, list(layers.values()))

    @classmethod
    def saved(cls, folder: Path, attention: str = "sdpa") -> Assembled:
        config: Any = AutoConfig.from_pretrained(folder)
        names = family_named(config.model_type).names(config) or RowMapping()
        return cls(config, WeightFiles(folder, names), attention)

    def logits(self, ids: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        if positions is None:
            positions = torch.arange(ids.shape[1]).expand_as(ids)
        found: torch.Tensor = self.stage(ids, Documents.of(positions))
        return found

    def gradients(self) -> dict[str, torch.Tensor]:
        """By the names of the files."""
        own = {
            f"{layer}.{path}": parameter.grad
            for layer, module in self.modules.items()
            for path, parameter in module.named_parameters()
        }
        found: dict[str, torch.Tensor] = {}
        for tensor, parts in self.names.tensors(own).items():
            rows: list[Any] = [own[part] for part in parts]
            found[tensor] = torch.cat(rows)
        return found
