"""Models in which only a part, or only an adapter beside the weights, is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from easyllm.errors import UserError
from easyllm.models import tensor_files
from easyllm.models.layers import LayerSpec, param_specs
from easyllm.models.random_weights import DrawnWeights, generator
from easyllm.models.weights import WeightFiles, Weights
from easyllm.spec.model import trainable
from easyllm.spec.roles import Adapter, LayerShape
from easyllm.spec.run import RunSpec


def adapted(run: RunSpec, layers: Sequence[LayerSpec]) -> list[LayerSpec]:
    """The layers, changed so that they are trained as ``training.adapter`` and ``training.freeze``
    say.

    Raises UserError where one of their patterns matches nothing in the model.
    """
    adapter = run.training.adapter
    if adapter is None and not run.training.freeze:
        return list(layers)
    shapes = param_specs(layers)
    for problem in trainable.problems(run, shapes):
        raise UserError(f"{problem.key}={problem.value}: {problem.message}; {problem.remedy}")
    names = frozenset(trainable.trained(run, shapes))
    chosen = adapter.chosen(trainable.linears(shapes)) if adapter else []

    def changed(spec: LayerSpec) -> LayerSpec:
        begin = f"{spec.name}."
        targets = [name.removeprefix(begin) for name in chosen if name.startswith(begin)]
        adapt = partial(_adapt, begin=begin, names=names, adapter=adapter, targets=targets)
        return LayerSpec(spec.name, spec.build, spec.decoder, spec.tied_to, adapt)

    return [changed(spec) for spec in layers]


def _adapt(
    layer: nn.Module,
    *,
    begin: str,
    names: frozenset[str],
    adapter: Adapter | None,
    targets: Sequence[str],
) -> None:
    for path, parameter in layer.named_parameters():
        parameter.requires_grad_(f"{begin}{path}" in names)
    if adapter and targets:
        adapter.attach(layer, targets)


class AdaptedWeights:
    """The weights of a model and of the adapter beside it."""

    def __init__(self, base: Weights, parts: Weights, adapter: Adapter):
        self.base, self.parts, self.adapter = base, parts, adapter

    @property
    def bytes_read(self) -> int:
        return self.base.bytes_read + self.parts.bytes_read

    @property
    def files_read(self) -> set[Path]:
        return self.base.files_read | self.parts.files_read

    def problems(
        self,
        own: Mapping[str, torch.Size],
        model: Mapping[str, torch.Size],
        shared: Mapping[str, str],
    ) -> list[str]:
        return self.base.problems(own, model, shared)

    def tensor(self, name: str, shape: torch.Size) -> torch.Tensor:
        own = self.adapter.base_name(name)
        return self.parts.tensor(name, shape) if own is None else self.base.tensor(own, shape)


class FreshAdapter(DrawnWeights):
    """An untrained adapter; each part is drawn from the seed and its own name."""

    def __init__(self, adapter: Adapter, seed: int):
        super().__init__(seed)
        self.adapter = adapter

    def tensor(self, name: str, shape: torch.Size) -> torch.Tensor:
        drawn: torch.Tensor = self.adapter.fresh(name, shape, generator(self.seed, name))
        return drawn


class MergedWeights:
    """The weights of a model, with the values that an adapter adds to them."""

    def __init__(
        self,
        base: Weights,
        parts: Weights,
        adapter: Adapter,
        layers: Sequence[LayerShape],
        dtype: torch.dtype,
    ):
        self.base, self.parts, self.adapter, self.dtype = base, parts, adapter, dtype
        matrices = trainable.linears(layers)
        self.beside = {
            f"{name}.weight": adapter.parameters(name, matrices[name])
            for name in adapter.chosen(matrices)
        }

    def tensor(self, name: str, shape: torch.Size) -> torch.Tensor:
        weight = self.base.tensor(name, shape).to(self.dtype)  # the type that it was trained with
        if name not in self.beside:
            return weight
        delta: torch.Tensor = self.adapter.delta(
            {part: self.parts.tensor(part, torch.Size(s)) for part, s in self.beside[name].items()}
        )
        return weight.float() + delta


def adapter_files(folder: Path) -> WeightFiles:
    """The adapter in a checkpoint's weights. Raises UserError where there is none."""
    return WeightFiles(folder, stem=tensor_files.ADAPTER)
