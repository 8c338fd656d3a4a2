"""A pipeline of stages, each on its own rank, in one or more replicas."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from deepspeed.pipe import LayerSpec as DeepSpeedLayer
from deepspeed.pipe import TiedLayerSpec as DeepSpeedTiedLayer
from torch import nn

from easyllm.errors import UserError
from easyllm.models.attention.documents import Documents
from easyllm.models.layers import LayerSpec, param_specs, unprojected
from easyllm.parallelism import partition, world
from easyllm.parallelism.deepspeed_internals import BoundedPipeline
from easyllm.parallelism.engine import Batch, TrainEngine
from easyllm.parallelism.world import quiet
from easyllm.spec.model.trainable import trained
from easyllm.spec.run import RunSpec

if TYPE_CHECKING:
    from easyllm.parallelism.layouts import Pipeline


class PipelineTrainEngine(TrainEngine):
    layout: Pipeline

    def __init__(self, run: RunSpec, layout: Pipeline, **parts: Any):
        super().__init__(run, layout, **parts)
        self.known: deque[torch.Tensor] = deque()
        """Positions, in host memory, of micro-batches that this stage has read but not started."""
        self.load_stage()
        self.data_rank = self.grid.get_data_parallel_rank()
        self.data_size = self.grid.get_data_parallel_world_size()
        self.runtime = self.initialize(self.pipeline)
        self.clock.watch_pipeline(self.runtime)
        # the last stage needs the labels, the first the token ids
        self.counts_data = self.runtime.is_first_stage()
        self.reads_data = self.counts_data or self.runtime.is_last_stage()

    def load_stage(self) -> None:
        """Build this rank's layers and read their weights."""
        shapes = param_specs(self.layers)
        bounds = partition.stage_bounds(shapes, self.layout, self.run.data.seq_len)
        for stage in partition.idle(shapes, bounds, trained(self.run, shapes)):
            raise UserError(f"{partition.left_idle(shapes, bounds, stage)}; {partition.IDLE}")
        self.check_weights(self._own(bounds))
        with quiet(), self.loading(max(b - a for a, b in pairwise(bounds))):
            self.pipeline = _Stages(self, bounds)
        self.grid: Any = self.pipeline.mpu()
        self._check_cover()

    def _own(self, bounds: list[int]) -> list[LayerSpec]:
        """The layers whose weights this rank's stage reads; DeepSpeed orders ranks stage by
        stage."""
        stage = dist.get_rank() // (dist.get_world_size() // self.layout.pipeline_stages)
        sources = {spec.name: spec for spec in self.layers}
        own = self.layers[bounds[stage] : bounds[stage + 1]]
        return [sources[spec.tied_to or spec.name] for spec in own]

    def _check_cover(self) -> None:
        """Every layer with its own weights must be in exactly one stage of each replica."""
        places = world.all_gather_object((self.grid.get_data_parallel_rank(), list(self.modules)))
        layers = [spec.name for spec in self.layers if spec.tied_to is None]
        for replica in {place for place, _ in places}:
            held = [name for place, names in places if place == replica for name in names]
            if held != layers:
                raise RuntimeError(f"replica {replica} holds {held} instead of {layers}")

    def specs(self) -> list[DeepSpeedLayer]:
        """The layers as DeepSpeed builds them."""
        shared = {spec.tied_to for spec in self.layers} - {None}
        sources = {spec.name: spec for spec in self.layers if spec.name in shared}

        def described(spec: LayerSpec) -> DeepSpeedLayer:
            source = sources.get(spec.tied_to or spec.name)
            if source is None:
                return _Own(self, spec)
            if any(p.requires_grad for p in source.trained().parameters()):
                return _Tied(self, spec, source)
            # copies of frozen weights stay equal anyway, and DeepSpeed would look for their
            # gradients
            return _Borrowed(self, spec, source) if spec.tied_to else _Own(self, spec)

        return [described(spec) for spec in self.layers]

    @property
    def replica_group(self) -> dist.ProcessGroup:
        group: dist.ProcessGroup = self.grid.get_data_parallel_group()
        return group

    def _norm_group(self) -> dist.ProcessGroup | None:
        group: dist.ProcessGroup = self.grid.get_pipe_parallel_group()
        return group

    def choices(self) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = self.pipeline.assembled.choices
        return found

    def train_batch(self, batches: Iterable[Batch]) -> float:
        loss = float(self.runtime.train_batch(self._noted(batches)).item())
        return loss if world.is_main() else 0.0  # all ranks have it from DeepSpeed

    def evaluate(self, batches: Iterable[Batch], count: int) -> float:
        loss = self.runtime.eval_batch(self._noted(batches), num_micro_batches=count)
        return float(loss.item())

    def _noted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The micro-batches; stages that read data start them in the order of reading."""
        self.known.clear()
        for batch in batches:
            self.known.append(batch[0][1])
            yield batch


class _Stages(BoundedPipeline):
    """The stages as DeepSpeed runs them.

    Positions are sent with the activations, as integers: every stage has to know where documents
    begin, but only the first and last stage read data.
    """

    def __init__(self, engine: PipelineTrainEngine, bounds: list[int]):
        self._known = engine.known
        super().__init__(
            layers=engine.specs(),
            num_stages=engine.layout.pipeline_stages,
            loss_fn=lambda output, target: engine.loss_of(output, *target),
            bounds=bounds,
        )
        functions = list(self.forward_funcs)
        specs = engine.layers[self.own]
        self._ends = self.own.stop == len(engine.layers)
        if self._ends and not engine.projects:
            functions[-1] = partial(unprojected, functions[-1])
        self.assembled: Any = engine.assemble(specs, functions)
        self._balance = engine.balance

    def forward(self, forward_input: tuple[torch.Tensor, ...]) -> Any:
        value, positions, *sums = forward_input
        known = self._known.popleft() if self._known else None
        value = self.assembled(value, Documents.of(positions, known))
        if self._balance is None:
            return value if self._ends else (value, positions)
        routed = sum(sums, start=self.assembled.routed(value))
        return (value, routed) if self._ends else (value, positions, routed)


class _Own(DeepSpeedLayer):
    """A layer with its own weights."""

    def __init__(self, engine: TrainEngine, spec: LayerSpec):
        super().__init__(nn.Module)
        self.engine, self.spec = engine, spec

    def build(self, log: bool = False) -> nn.Module:
        module = self.engine.modules[self.spec.name] = self.engine.build(self.spec)
        return module


class _Tied(DeepSpeedTiedLayer):
    """The embedding, or the head that uses its weight; the stage of each keeps a copy."""

    def __init__(self, engine: TrainEngine, spec: LayerSpec, source: LayerSpec):
        forward = _project if spec.tied_to else None
        super().__init__(source.name.replace(".", "_"), nn.Module, forward_fn=forward)
        self.engine, self.spec, self.source = engine, spec, source

    def build(self, log: bool = False) -> nn.Module:
        module = self.engine.build(self.source)
        held = self.engine.modules if self.spec is self.source else self.engine.copies
        held[self.source.name] = module
        return module


class _Borrowed(DeepSpeedLayer):
    """A head with the weight of a frozen embedding."""

    def __init__(self, engine: TrainEngine, spec: LayerSpec, source: LayerSpec):
        super().__init__(nn.Module)
        self.engine, self.spec, self.source = engine, spec, source

    def build(self, log: bool = False) -> nn.Module:
        head, name = self.spec.build(), self.source.name
        held = self.engine.modules.get(name)
        if held is None:
            held = self.engine.copies[name] = self.engine.build(self.source)
        head.weight = held.weight
        return head


def _project(embedding: Any, hidden: torch.Tensor) -> torch.Tensor:
    return nn.functional.linear(hidden, embedding.weight)
