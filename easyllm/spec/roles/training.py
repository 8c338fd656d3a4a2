"""Roles of training."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easyllm.spec.roles.base import Component
from easyllm.spec.types import Count, NonNegativeFloat, PositiveFloat

if TYPE_CHECKING:
    from easyllm.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class Parallelism(Component):
    """How training is laid out over the ranks."""

    data_parallel: Count | None = None
    """Replicas of the model; derived from the number of ranks when null."""
    micro_batch_size: Count = 1
    """Rows a replica takes at once."""
    global_batch_size: Count = 8
    """Rows of one optimizer step over all replicas. Gradient accumulation is derived."""
    checkpoint_activations: bool = False
    """Recompute each decoder layer in the backward pass instead of keeping its activations."""

    @property
    @abc.abstractmethod
    def stages(self) -> int:
        """Pipeline stages; 1 without a pipeline."""

    @property
    @abc.abstractmethod
    def state_shards(self) -> tuple[bool, bool, bool]:
        """Whether (optimizer state, gradients, parameters) are split over the replicas."""

    def replicas(self, ranks: int) -> int:
        """Data-parallel replicas on ``ranks`` ranks."""
        return self.data_parallel or max(1, ranks // self.stages)

    def accumulation(self, ranks: int) -> int:
        """Micro-batches a replica takes in one optimizer step."""
        return max(1, self.global_batch_size // (self.micro_batch_size * self.replicas(ranks)))

    @abc.abstractmethod
    def engine(self, run: RunSpec, **parts: Any) -> Any:
        """The training engine on this rank, an ``easyllm.parallelism.engine.TrainEngine``."""


@dataclass(frozen=True, kw_only=True)
class Optimizer(Component):
    lr: PositiveFloat = 3e-4
    """Peak learning rate."""

    @abc.abstractmethod
    def build(self, groups: list[dict[str, Any]]) -> Any:
        """A ``torch.optim.Optimizer`` over parameter groups; a group with ``decay`` false
        gets no weight decay."""


@dataclass(frozen=True, kw_only=True)
class Schedule(Component):
    warmup: NonNegativeFloat = 0.0
    """Steps of linear warm-up; a number below 1 is a share of all steps."""

    def warmup_steps(self, total: int) -> int:
        return int(self.warmup * total) if self.warmup < 1 else int(self.warmup)

    @abc.abstractmethod
    def factor(self, step: int, total: int) -> float:
        """The learning rate of step ``step`` (from 0) of ``total``, as a share of the peak."""


@dataclass(frozen=True, kw_only=True)
class Tracker(Component):
    """Where training metrics go besides ``metrics.jsonl``."""

    @abc.abstractmethod
    def open(self, name: str, folder: Path, settings: Mapping[str, Any]) -> Any:
        """Start tracking; returns an object with ``log(step, values)`` and ``close()``."""
