"""Roles of training."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from easyllm.spec.roles.base import Component
from easyllm.spec.types import Count, DType, NonNegativeFloat, PositiveFloat

if TYPE_CHECKING:
    from easyllm.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class Parallelism(Component):
    """How training is laid out over the ranks."""

    data_parallel: Count | None = None
    """Replicas of the model; derived from the number of ranks when null."""
    micro_batch_size: Count = 1
    """Rows that a replica processes at once."""
    global_batch_size: Count = 8
    """Rows of one optimizer step over all replicas. Gradient accumulation is derived."""
    checkpoint_activations: bool | Count = False
    """Recompute decoder layers in the backward pass instead of keeping their activations: true
    for every layer, ``n`` for the first of every n, which takes less time and more memory."""
    reduce_dtype: DType = "float32"
    """The type in which gradients are sent and summed over the replicas. ``bfloat16`` sends half as
    much, and each sum is rounded to 8 bits of precision."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """DeepSpeed settings for speed and memory that have no key of their own here, such as
    ``deepspeed.zero_optimization.overlap_comm=true``. They are added to the settings that follow
    from the spec. Settings that follow from another key, or that would change what is computed, are
    refused."""

    @property
    @abc.abstractmethod
    def stages(self) -> int:
        """Pipeline stages; 1 without a pipeline."""

    @property
    @abc.abstractmethod
    def state_shards(self) -> tuple[bool, bool, bool]:
        """Whether (optimizer state, gradients, parameters) are split over the replicas."""

    @property
    def offloads(self) -> tuple[bool, bool]:
        """Whether (gradients and optimizer state, parameters) are kept off the devices."""
        return (False, False)

    def recomputes(self, layer: int) -> bool:
        """Whether decoder layer ``layer``, from 0, is recomputed in the backward pass."""
        every = int(self.checkpoint_activations)
        return every > 0 and layer % every == 0

    def replicas(self, ranks: int) -> int:
        """Data-parallel replicas on ``ranks`` ranks."""
        return self.data_parallel or max(1, ranks // self.stages)

    def accumulation(self, ranks: int) -> int:
        """Micro-batches that a replica processes in one optimizer step."""
        return max(1, self.global_batch_size // (self.micro_batch_size * self.replicas(ranks)))

    @abc.abstractmethod
    def engine(self, run: RunSpec, **parts: Any) -> Any:
        """The training engine on this rank, an ``easyllm.parallelism.engine.TrainEngine``."""


@dataclass(frozen=True, kw_only=True)
class Adapter(Component):
    """Small matrices that are trained beside those of a model, which are not changed."""

    everywhere: ClassVar[tuple[str, ...]] = ()
    """Patterns that mean all linear layers of the decoder layers, and nothing else."""

    @property
    @abc.abstractmethod
    def patterns(self) -> tuple[str, ...]:
        """The patterns that choose the linear layers that get an adapter."""

    @abc.abstractmethod
    def chosen(self, linears: Iterable[str], patterns: Sequence[str] = ()) -> list[str]:
        """The names among the model's ``linears`` that ``patterns`` choose, or the adapter's own
        patterns where none are given."""

    @abc.abstractmethod
    def parameters(self, linear: str, shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """The shapes by name of the adapter's parameters for a linear layer whose weight has
        ``shape``."""

    @abc.abstractmethod
    def attach(self, layer: Any, targets: Sequence[str]) -> None:
        """Put adapters on the submodules ``targets`` of a layer on the meta device, and freeze
        the layer's own parameters."""

    @abc.abstractmethod
    def base_name(self, parameter: str) -> str | None:
        """The name in the model without adapters of a parameter of an adapted layer; None for a
        parameter of the adapter."""

    @abc.abstractmethod
    def fresh(self, parameter: str, shape: Sequence[int], generator: Any) -> Any:
        """The initial tensor of a parameter of the adapter, drawn with a torch generator."""

    @abc.abstractmethod
    def delta(self, parts: Mapping[str, Any]) -> Any:
        """What the adapter adds to a weight, in fp32, from the tensors of its ``parameters``."""

    @abc.abstractmethod
    def write(
        self,
        folder: Path,
        base: str,
        linears: Sequence[str],
        parts: Mapping[str, Any],
        revision: str | None = None,
    ) -> None:
        """Write the adapter as a folder that peft loads. ``base`` is its model, ``revision`` that
        model's revision on the hub, ``linears`` the linear layers that it adapts, and ``parts`` are
        all its tensors by name."""


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
    """Steps of linear warm-up; a number below 1 is a share of all steps. Step ``s`` (from 0) of
    ``w`` has ``(s + 1) / (w + 1)`` of the peak, so no step has a learning rate of 0."""
    warmup_from_zero: bool = False
    """Warm up as transformers does: step ``s`` of ``w`` has ``s / w`` of the peak, so the first
    step changes no weight, and a share of the steps is rounded up instead of down. ``linear`` then
    has exactly the learning rates of transformers' ``linear``, and ``cosine`` with ``floor: 0``
    those of its ``cosine``."""

    def warmup_steps(self, total: int) -> int:
        if self.warmup >= 1:
            return int(self.warmup)
        # as TrainingArguments.get_warmup_steps of transformers 5.19 rounds
        rounded = math.ceil if self.warmup_from_zero else int
        return rounded(self.warmup * total)

    def warmup_factor(self, step: int, total: int) -> float | None:
        """The learning rate of a step of the warm-up as a share of the peak; None after it."""
        warmup = self.warmup_steps(total)
        if step >= warmup:
            return None
        return step / warmup if self.warmup_from_zero else (step + 1) / (warmup + 1)

    @abc.abstractmethod
    def factor(self, step: int, total: int) -> float:
        """The learning rate of step ``step`` (from 0) of ``total``, as a share of the peak."""


@dataclass(frozen=True, kw_only=True)
class Tracker(Component):
    """Logs training metrics to another place besides ``metrics.jsonl``."""

    @abc.abstractmethod
    def open(self, name: str, folder: Path, settings: Mapping[str, Any], *, done: int = 0) -> Any:
        """Start tracking, or resume after step ``done``; later steps, which a run made before it
        was killed, are logged again. Returns an object with ``log(step, values)`` and ``close()``.
        A thread calls them, so training does not wait for them."""
