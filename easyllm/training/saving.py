"""Saving a checkpoint from all ranks as one folder that is whole or absent."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from easyllm.files import new_folder
from easyllm.models.config import write_description
from easyllm.models.names import Names
from easyllm.models.weights import plan_shards, shard_name, write_index, write_shard
from easyllm.parallelism import world
from easyllm.parallelism.engine import TrainEngine
from easyllm.paths import RunPaths
from easyllm.progress import progress
from easyllm.training import checkpoints

SHARD_BYTES = 5e9


def save(
    engine: TrainEngine,
    config: PretrainedConfig,
    names: Names,
    facts: dict[str, Any],
    conversations: bool,
) -> Path:
    """Write ``checkpoints/step-N`` for ``facts["step"]``; every rank must call it.

    All ranks write into one folder aside, which rank 0 names when they are done. Whether
    ``conversations`` were trained decides with what generation ends.
    """
    run = engine.run
    root = RunPaths(run).checkpoints
    target = checkpoints.location(root, facts["step"])
    with contextlib.ExitStack() as stack:
        aside = None
        if world.first():
            aside = stack.enter_context(new_folder(target))
            (aside / checkpoints.WEIGHTS).mkdir()
        folder: Path = world.from_first(aside)
        engine.save(folder)
        write_weights(engine, folder / checkpoints.WEIGHTS, names)
        if world.first():
            write_description(run, config, folder / checkpoints.WEIGHTS, conversations)
        world.wait_for_all()
        if world.first():
            checkpoints.seal(folder, facts)
    if world.first():
        checkpoints.tidy(root, run.training.checkpoint.keep)
    world.wait_for_all()
    return target


def write_weights(engine: TrainEngine, folder: Path, names: Names) -> None:
    """Hugging Face shards, each written by a rank that holds its layers, and their index."""
    layers = list(engine.modules)
    owners = [place * engine.data_size // len(layers) for place in range(len(layers))]
    mine = [name for name, owner in zip(layers, owners, strict=True) if owner == engine.data_rank]
    sizes = _sizes(engine, mine, names)
    plan = plan_shards(sizes, SHARD_BYTES)
    counts = world.from_all(len(plan))
    begin, total = sum(counts[: torch.distributed.get_rank()]), sum(counts)
    files = {
        tensor: shard_name(begin + number, total)
        for number, shard in enumerate(plan)
        for tensor in shard
    }
    waiting: dict[str, torch.Tensor] = {}
    last = {shard[-1] for shard in plan}
    with progress("save weights", len(layers), "layer", visible=world.first()) as bar:
        for name in layers:
            with engine.whole(engine.modules[name]):
                own = _parameters(engine, name) if name in mine else {}
                for tensor, parts in names.tensors(own).items():
                    # always a copy: what is trained on must not be what waits to be written
                    waiting[tensor] = torch.cat([own[part].detach().cpu() for part in parts])
                    if tensor in last:
                        write_shard(folder / files[tensor], waiting)
                        waiting = {}
            bar.update()
    everything = world.from_all((files, sizes))
    if world.first():
        write_index(
            folder,
            {name: file for part, _ in everything for name, file in part.items()},
            {name: size for _, part in everything for name, size in part.items()},
        )


def _parameters(engine: TrainEngine, layer: str) -> dict[str, torch.nn.Parameter]:
    """A layer's parameters by their names in the whole model."""
    return {f"{layer}.{path}": p for path, p in engine.modules[layer].named_parameters()}


def _sizes(engine: TrainEngine, layers: list[str], names: Names) -> dict[str, int]:
    """Bytes by the tensor's name in the files, without gathering what is split."""
    sizes = {
        name: engine.dtype.itemsize
        * torch.Size(getattr(parameter, "ds_shape", parameter.shape)).numel()
        for layer in layers
        for name, parameter in _parameters(engine, layer).items()
    }
    return {
        tensor: sum(sizes[part] for part in parts) for tensor, parts in names.tensors(sizes).items()
    }
