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
    """Rows a replica takes at once."""
    global_batch_size: Count = 8
    """Rows of one optimizer step over all replicas. Gradient accumulation is derived."""
    checkpoint_activations: bool | Count = False
    """Recompute decoder layers in the backward pass instead of keeping their activations: true
    for every layer, ``n`` for the first of every n, which takes less time and more memory."""
    reduce_dtype: DType = "float32"
    """What gradients are sent in, and added up over the replicas. ``bfloat16`` sends half as much,
    and each sum is rounded to 8 bits of precision."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """DeepSpeed's own settings of speed and memory for which there is no key, laid over what
    follows from the spec: ``deepspeed.zero_optimization.overlap_comm=true``. Those that follow
    from another key, or would change what is computed, are refused."""

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
        """Micro-batches a replica takes in one optimizer step."""
        return max(1, self.global_batch_size // (self.micro_batch_size * self.replicas(ranks)))

    @abc.abstractmethod
    def engine(self, run: RunSpec, **parts: Any) -> Any:
        """The training engine on this rank, an ``easyllm.parallelism.engine.TrainEngine``."""


@dataclass(frozen=True, kw_only=True)
class Adapter(Component):
    """Small matrices trained beside those of a model, which stays as it is."""

    everywhere: ClassVar[tuple[str, ...]] = ()
    """Patterns that mean all linear layers of the decoder layers, and nothing beside them."""

    @property
    @abc.abstractmethod
    def patterns(self) -> tuple[str, ...]:
        """What chooses the linear layers that get an adapter."""

    @abc.abstractmethod
    def chosen(self, linears: Iterable[str], patterns: Sequence[str] = ()) -> list[str]:
        """Those of the model's ``linears``, by name, that ``patterns``, or the adapter's own
        where none are given, choose."""

    @abc.abstractmethod
    def parameters(self, linear: str, shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """The shapes by name of what stands beside a linear layer whose weight is of ``shape``."""

    @abc.abstractmethod
    def attach(self, layer: Any, targets: Sequence[str]) -> None:
        """Put adapters on the submodules ``targets`` of a layer on the meta device, and freeze
        what is its own."""

    @abc.abstractmethod
    def base_name(self, parameter: str) -> str | None:
        """What a parameter of an adapted layer is called in the model without adapters; None
        for one of the adapter's."""

    @abc.abstractmethod
    def fresh(self, parameter: str, shape: Sequence[int], generator: Any) -> Any:
        """The tensor that a parameter of the adapter begins as, drawn with a torch generator."""

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
        """Write the adapter of the model at ``base``, at ``revision`` of a hub id, whose linear
        layers are ``linears``, as a folder that peft loads; ``parts`` are all its tensors by
        name."""


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
    ``w`` has ``(s + 1) / (w + 1)`` of the peak: no step is lost on a learning rate of 0."""
    warmup_from_zero: bool = False
    """Warm up as transformers does: step ``s`` of ``w`` has ``s / w`` of the peak, so the first
    step changes no weight, and a share of the steps is rounded up where it is rounded down
    otherwise. ``linear`` then has exactly the learning rates of transformers' ``linear``, and
    ``cosine`` with ``floor: 0`` those of its ``cosine``."""

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
    """Where training metrics go besides ``metrics.jsonl``."""

    @abc.abstractmethod
    def open(self, name: str, folder: Path, settings: Mapping[str, Any], *, done: int = 0) -> Any:
        """Start tracking, or go on after step ``done``: later ones, which a run made before it
        was killed, come again. Returns an object with ``log(step, values)`` and ``close()``, which
        a thread calls: training does not wait for them."""
