"""A model's weights as Hugging Face shards, each written by a rank that holds its layers.

With an adapter they are the adapter's only, by the layers' own names. First each rank's part is
decided, by names and sizes. Then the weights are copied layer by layer, which gathers them where
they are split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from easyllm.models.tensor_files import ADAPTER, MODEL
from easyllm.models.weight_mapping import RowMapping, WeightMapping
from easyllm.models.weights import plan_shards, shard_name, write_index, write_shard
from easyllm.parallelism import world
from easyllm.parallelism.deepspeed_internals import whole_shape
from easyllm.parallelism.engine import TrainEngine
from easyllm.progress import progress
from easyllm.training.checkpointing import checkpoints
from easyllm.training.checkpointing.pending_save import CheckpointFile

SHARD_BYTES = 5e9


@dataclass(frozen=True)
class WeightShards:
    engine: TrainEngine
    names: WeightMapping
    stem: str
    """The beginning of the files' names."""
    shards: dict[str, list[str]]
    """This rank's tensors by file, in order."""
    all_files: dict[str, str]
    """The file of each tensor, for all ranks."""
    all_sizes: dict[str, int]
    """The bytes of each tensor, for all ranks."""

    @classmethod
    def of(cls, engine: TrainEngine, names: WeightMapping) -> WeightShards:
        """Decide which rank writes which tensors; every rank must call it."""
        adapter = engine.run.training.adapter
        stem = ADAPTER if adapter else MODEL
        names = RowMapping() if adapter else names
        sizes = _sizes(engine, _own_layers(engine), names)
        plan = plan_shards(sizes, SHARD_BYTES)
        counts = world.all_gather_object(len(plan))
        begin, total = sum(counts[: world.rank()]), sum(counts)
        shards = {shard_name(begin + n, total, stem): shard for n, shard in enumerate(plan)}
        files = {tensor: file for file, shard in shards.items() for tensor in shard}
        everything = world.all_gather_object((files, sizes))
        return cls(
            engine, names, stem, shards,
            all_files={name: file for part, _ in everything for name, file in part.items()},
            all_sizes={name: size for _, part in everything for name, size in part.items()},
        )  # fmt: skip

    def files(self) -> Iterator[CheckpointFile]:
        """This rank's shards, copied to host memory one at a time. Every rank must take all of its
        own: where weights are split, all ranks gather each layer together. The copies do not change
        when training continues."""
        engine, mine = self.engine, set(_own_layers(self.engine))
        last = {shard[-1]: file for file, shard in self.shards.items()}
        waiting: dict[str, torch.Tensor] = {}
        layers = list(engine.modules)
        with progress("save weights", len(layers), "layer", visible=world.is_main()) as bar:
            for layer in layers:
                held = _tensors(engine, layer)
                with engine.gathered(t for t in held.values() if isinstance(t, nn.Parameter)):
                    own = {n: t.detach() for n, t in held.items()} if layer in mine else {}
                    for tensor, value in self.names.stored(own).items():
                        # always a copy: training must not change what waits to be written
                        waiting[tensor] = torch.empty_like(value, device="cpu").copy_(value)
                        if tensor in last:
                            file = f"{checkpoints.WEIGHTS}/{last[tensor]}"
                            yield file, partial(write_shard, tensors=waiting)
                            waiting = {}
                bar.update()

    def write_index(self, folder: Path) -> None:
        write_index(folder, files=self.all_files, sizes=self.all_sizes, stem=self.stem)


def _own_layers(engine: TrainEngine) -> list[str]:
    """The layers of this pipeline stage whose weights this replica writes."""
    layers = list(engine.modules)
    owners = [place * engine.data_size // len(layers) for place in range(len(layers))]
    return [name for name, owner in zip(layers, owners, strict=True) if owner == engine.data_rank]


def _tensors(engine: TrainEngine, layer: str) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a layer that a checkpoint keeps, by name in the whole model:
    all, or the parameters of an adapter only."""
    found = engine.tensors({layer: engine.modules[layer]})
    adapter = engine.run.training.adapter
    return {name: p for name, p in found if adapter is None or adapter.base_name(name) is None}


def _sizes(engine: TrainEngine, layers: list[str], names: WeightMapping) -> dict[str, int]:
    """Bytes by the tensor's name in the files, without gathering what is split."""
    sizes: dict[str, int] = {}
    for layer in layers:  # in the order in which ``files`` copies the tensors
        empty = {
            name: torch.empty(whole_shape(tensor), dtype=tensor.dtype, device="meta")
            for name, tensor in _tensors(engine, layer).items()
        }
        sizes |= {name: tensor.nbytes for name, tensor in names.stored(empty).items()}
    return sizes
