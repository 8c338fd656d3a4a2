"""Every rank is a replica of the model, whose states ZeRO splits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

from easyllm.models.attention.documents import Documents
from easyllm.models.layers import Assemble, LayerSpec, Unprojected, unprojected
from easyllm.parallelism.engine import Batch, TrainEngine
from easyllm.parallelism.world import quiet
from easyllm.spec.run import RunSpec

if TYPE_CHECKING:
    from easyllm.parallelism.layouts import Zero


class ZeroTrainEngine(TrainEngine):
    reads_data = counts_data = True

    def __init__(self, run: RunSpec, layout: Zero, **parts: Any):
        super().__init__(run, layout, **parts)
        self.data_rank, self.data_size = dist.get_rank(), dist.get_world_size()
        self.split_weights = layout.zero_stage == 3
        self.whole = self._model()
        self.runtime = self.initialize(self.whole)

    def _model(self) -> _Whole:
        self.check_weights(self.layers)
        model = _Whole(self.assemble, self.projects, balanced=self.balance is not None)
        with self.loading(len(self.layers)):
            for spec in self.layers:
                if spec.tied_to is None:
                    module = self.modules[spec.name] = self.build(spec)
                    if self.split_weights:
                        self._split(module)
                else:
                    module = spec.build()
                    module.weight = self.modules[spec.tied_to].weight
                model.append(spec, module)
        return model

    def _split(self, module: nn.Module) -> None:
        """Keep only this rank's share of a layer's weights: no rank ever holds the whole model."""
        with quiet():
            deepspeed.zero.Init(module=module, config_dict_or_path=self.config(), dtype=self.dtype)

    @property
    def replica_group(self) -> dist.ProcessGroup:
        group: dist.ProcessGroup = dist.group.WORLD  # type: ignore[assignment]
        return group

    def choices(self) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = self.whole.assembled.choices
        return found

    def train_batch(self, batches: Iterable[Batch]) -> float:
        if not self.runtime.module.training:  # it visits every module
            self.runtime.train()
        total, phase = torch.zeros((), device=self.device), self.clock.phase
        for batch in islice(batches, self.accumulation):
            with phase("forward"):
                loss = self._loss(batch)
            with phase("backward"):
                self.runtime.backward(loss)
            with phase("optimizer"):
                self.runtime.step()
            total += loss.detach()
        return total.item() / (self.accumulation * self.data_size)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch], count: int) -> float:
        self.runtime.eval()
        total = torch.stack([self._loss(batch) for batch in islice(batches, count)]).sum()
        dist.all_reduce(total)
        return total.item() / (count * self.data_size)

    def _loss(self, batch: Batch) -> torch.Tensor:
        (ids, positions), (labels, scale) = batch
        logits = self.runtime(ids.to(self.device), positions.to(self.device), positions)
        return self.loss_of(logits, labels.to(self.device), scale.to(self.device))

    @contextlib.contextmanager
    def gathered(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        if not self.split_weights:
            yield
            return
        with deepspeed.zero.GatheredParameters(list(parameters)):
            yield


class _Whole(nn.Module):
    """All layers, nested so that parameters have their Hugging Face names."""

    def __init__(self, assemble: Assemble, projects: bool, balanced: bool) -> None:
        super().__init__()
        self.assemble, self.projects, self.balanced = assemble, projects, balanced
        self.specs: list[LayerSpec] = []
        self.assembled: Any = None

    def append(self, spec: LayerSpec, layer: nn.Module) -> None:
        owner: nn.Module = self
        *path, last = spec.name.split(".")
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.add_module(last, layer)
        self.specs.append(spec)

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, known: torch.Tensor) -> Any:
        if self.assembled is None:
            layers: list[Any] = [self.get_submodule(spec.name) for spec in self.specs]
            if not self.projects:
                layers[-1] = partial(unprojected, layers[-1])
            self.assembled = self.assemble(self.specs, layers)
        value: torch.Tensor | Unprojected = self.assembled(ids, Documents.of(positions, known))
        return (value, self.assembled.routed(value)) if self.balanced else value
