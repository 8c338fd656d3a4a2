"""Saving a checkpoint from all ranks as one folder that is whole or absent."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PretrainedConfig

from easyllm.errors import UserError
from easyllm.files import flush, new_folder
from easyllm.models.config import write_description
from easyllm.models.names import Names
from easyllm.models.tensor_files import ADAPTER, MODEL
from easyllm.models.weights import plan_shards, shard_name, write_index, write_shard
from easyllm.parallelism import world
from easyllm.parallelism.engine import TrainEngine
from easyllm.paths import RunPaths
from easyllm.progress import progress
from easyllm.training import checkpoints, optimizer_state

SHARD_BYTES = 5e9


def save(
    engine: TrainEngine,
    config: PretrainedConfig,
    names: Names,
    facts: dict[str, Any],
    conversations: bool,
) -> Path:
    """Write ``checkpoints/step-N`` for ``facts["step"]``; every rank must call it.

    All ranks write into one folder aside, which rank 0 names when all of it is on the disk.
    Whether ``conversations`` were trained decides with what generation ends. Raises UserError
    on every rank where any could not write; older checkpoints are as they were.
    """
    run = engine.run
    root = RunPaths(run).checkpoints
    target = checkpoints.location(root, facts["step"])
    with contextlib.ExitStack() as stack:
        writing, aside = Writing(), None
        if world.first():
            with writing:
                aside = stack.enter_context(new_folder(target))
                for part in (checkpoints.WEIGHTS, optimizer_state.FOLDER):
                    (aside / part).mkdir()
        folder: Path = world.from_first(aside)
        writing.agree(target)
        with writing:
            optimizer_state.write(
                engine, folder / optimizer_state.FOLDER / f"rank-{world.rank():05}.safetensors"
            )
        write_weights(engine, folder / checkpoints.WEIGHTS, names, writing)
        if world.first():
            with writing:
                write_description(run, config, folder / checkpoints.WEIGHTS, conversations)
        writing.agree(target)
        files: dict[str, Any] = {}
        with writing:
            mine = checkpoints.file_names(folder)[world.rank() :: world.size()]
            files = checkpoints.facts_of(folder, mine)
            for name in mine:
                flush(folder / name)
        everything = world.from_all(files)
        writing.agree(target)
        if world.first():
            with writing:
                whole = {name: fact for part in everything for name, fact in part.items()}
                checkpoints.seal(folder, facts, whole)
                stack.close()  # gives the folder its name
        writing.agree(target)
    if world.first():
        kept = run.training.checkpoint
        checkpoints.tidy(root, kept.keep, kept.keep_every)
    world.wait_for_all()
    return target


class Writing:
    """Lets no rank fail alone: within ``with`` blocks of it the first error of the disk is kept,
    and ``agree`` raises it on all ranks.

    A rank that raised at once would leave the others waiting for it, and what was written
    lying there.
    """

    error: str | None = None

    def __enter__(self) -> Writing:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, OSError | SafetensorError):
            return False
        self.error = self.error or str(error)
        return True

    def agree(self, target: Path) -> None:
        """Raise UserError on all ranks where any met an error on the way to ``target``."""
        met = [error for error in world.from_all(self.error) if error]
        if met:
            raise UserError(
                f"{target} could not be saved: {met[0]}; checkpoints saved before stand. Make "
                "room there, then run the same command again"
            )


def write_weights(engine: TrainEngine, folder: Path, names: Names, writing: Writing) -> None:
    """Hugging Face shards, each written by a rank that holds its layers, and their index; under
    an adapter of the adapter alone, in the layers' own names."""
    adapter = engine.run.training.adapter
    stem = ADAPTER if adapter else MODEL
    if adapter:
        names = Names()
    layers = list(engine.modules)
    owners = [place * engine.data_size // len(layers) for place in range(len(layers))]
    mine = [name for name, owner in zip(layers, owners, strict=True) if owner == engine.data_rank]
    sizes = _sizes(engine, mine, names)
    plan = plan_shards(sizes, SHARD_BYTES)
    counts = world.from_all(len(plan))
    begin, total = sum(counts[: torch.distributed.get_rank()]), sum(counts)
    files = {
        tensor: shard_name(begin + number, total, stem)
        for number, shard in enumerate(plan)
        for tensor in shard
    }
    waiting: dict[str, torch.Tensor] = {}
    last = {shard[-1] for shard in plan}
    with progress("save weights", len(layers), "layer", visible=world.first()) as bar:
        for name in layers:
            own = _parameters(engine, name)
            with engine.whole(own.values()):
                own = own if name in mine else {}
                for tensor, parts in names.tensors(own).items():
                    # always a copy: what is trained on must not be what waits to be written
                    waiting[tensor] = torch.cat([own[part].detach().cpu() for part in parts])
                    if tensor in last:
                        with writing:
                            write_shard(folder / files[tensor], waiting)
                        waiting = {}
            bar.update()
    everything = world.from_all((files, sizes))
    if world.first():
        with writing:
            write_index(
                folder,
                {name: file for part, _ in everything for name, file in part.items()},
                {name: size for _, part in everything for name, size in part.items()},
                stem,
            )


def _parameters(engine: TrainEngine, layer: str) -> dict[str, torch.nn.Parameter]:
    """What a checkpoint keeps of a layer, by name in the whole model: its parameters, or those
    of an adapter only."""
    found = engine.parameters({layer: engine.modules[layer]})
    adapter = engine.run.training.adapter
    return {name: p for name, p in found if adapter is None or adapter.base_name(name) is None}


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
