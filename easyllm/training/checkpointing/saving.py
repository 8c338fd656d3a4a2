"""Saving a checkpoint from all ranks as one folder that is whole or absent.

A save has three parts. All ranks copy their share into host memory, which needs communication
where weights are split; each writes it, which needs none and may be done by a thread while
training goes on, or file by file as it is copied, so that host memory need not hold all of it; and
when all have written, rank 0 lists the files and names the folder.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PretrainedConfig

from easyllm.data.chat.template_text import set_defaults
from easyllm.errors import UserError
from easyllm.files import AtomicDir, flush, removed
from easyllm.heartbeat import beat
from easyllm.models.config import write_description
from easyllm.models.tensor_files import ADAPTER, MODEL
from easyllm.models.weight_mapping import WeightMapping
from easyllm.models.weights import plan_shards, shard_name, write_index, write_shard
from easyllm.parallelism import world
from easyllm.parallelism.engine import TrainEngine
from easyllm.paths import RunPaths
from easyllm.progress import progress
from easyllm.spec.run import RunSpec
from easyllm.training.checkpointing import checkpoints, optimizer_state

SHARD_BYTES = 5e9

CheckpointFile = tuple[str, Callable[[Path], None]]
"""A file of a checkpoint, by its path in the folder, and what writes it; of what stands beside the
weights, the folder."""


class Saver:
    """Saves a run's checkpoints, one at a time.

    Whether ``conversations`` were trained decides with what generation ends; answers counted by
    ``template_arguments``, as JSON, with what the exported chat template asks for them.
    """

    def __init__(
        self,
        run: RunSpec,
        config: PretrainedConfig,
        names: WeightMapping,
        conversations: bool,
        template_arguments: Mapping[str, int],
    ):
        self.run, self.config, self.names = run, config, names
        self.conversations = conversations
        self.template_arguments = template_arguments
        self.asynchronous = run.training.checkpoint.asynchronous
        self.root = RunPaths(run).checkpoints
        self.flying: _Flight | None = None
        self.stalled: float | None = None
        """Seconds that training stood still for checkpoints since ``told``."""
        self.longest = 0.0
        """Seconds of the longest save, from its begin until it was whole."""
        self.whole: dict[str, Any] = {}
        self.last = time.monotonic()
        """When the last save began, or else training."""

    def begin(self, engine: TrainEngine, facts: dict[str, Any]) -> None:
        """Save ``checkpoints/step-N`` for ``facts["step"]``; every rank must call it.

        Returns when it is whole, or, with ``training.checkpoint.asynchronous``, when all of it
        is in host memory; the save before is waited for. Raises UserError on every rank where
        any could not write; older checkpoints are as they were.
        """
        self.finish()
        begin, self.last = time.perf_counter(), time.monotonic()
        flight = _Flight(checkpoints.location(self.root, facts["step"]), facts)
        try:
            flight.open()
            parts = self._parts(engine, flight)
            flight.write(list(parts) if self.asynchronous else parts, self.asynchronous)
        except BaseException:
            flight.close()
            raise
        self.flying = flight
        self._stood_still(begin)
        if not self.asynchronous:
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if one is, and give it its name;
        every rank must call it. Raises UserError as ``begin`` does."""
        flight, self.flying = self.flying, None
        if flight is None:
            return
        begin = time.perf_counter()
        world.beat(f"saving step {flight.facts['step']}")
        try:
            flight.land()
        finally:
            flight.close()
        if world.is_main():
            kept = self.run.training.checkpoint
            checkpoints.prune(self.root, kept.keep, kept.keep_every)
        world.wait_for_all()
        seconds = flight.written - flight.begun
        self.longest = max(self.longest, time.perf_counter() - flight.begun)
        self.whole = {"saved_step": flight.facts["step"], "write_seconds": seconds}
        self._stood_still(begin)

    @property
    def written(self) -> bool:
        """Whether this rank has written its share of a checkpoint that has no name yet."""
        return self.flying is not None and not self.flying.busy

    def told(self) -> dict[str, Any]:
        """For the line of metrics: how long training stood still for checkpoints since it was
        last asked, and the newest that became whole since, in how many seconds."""
        found = self.whole
        if self.stalled is not None:
            found = {"save_seconds": self.stalled, **found}
        self.stalled, self.whole = None, {}
        return found

    def _stood_still(self, since: float) -> None:
        self.stalled = (self.stalled or 0.0) + time.perf_counter() - since

    def _parts(self, engine: TrainEngine, flight: _Flight) -> Iterator[CheckpointFile]:
        """What this rank writes; every rank must take all of it."""
        for number, share in enumerate(optimizer_state.shares(engine)):
            file = optimizer_state.file_name(world.rank(), number)
            yield f"{optimizer_state.FOLDER}/{file}", partial(save_file, share)
        yield from weights(engine, self.names)
        if world.is_main():
            yield checkpoints.WEIGHTS, self._describe

    def _describe(self, folder: Path) -> None:
        write_description(self.run, self.config, folder, self.conversations)
        if len(self.template_arguments) == 1:
            # every answer was asked for with these, as it is to be when the model is served
            (arguments,) = map(json.loads, self.template_arguments)
            if arguments:
                set_defaults(folder, arguments)


class _Flight:
    """A checkpoint between its first byte and its name."""

    def __init__(self, target: Path, facts: dict[str, Any]):
        self.target, self.facts = target, facts
        self.begun = self.written = time.perf_counter()
        self.writing = Writing()
        self.files: dict[str, Any] = {}
        self.thread: threading.Thread | None = None
        self.failed: BaseException | None = None
        self.own: AtomicDir | None = None
        """Rank 0's: all ranks write into one folder aside, which it names."""

    @property
    def busy(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def open(self) -> None:
        if world.is_main():
            with self.writing:
                self.own = AtomicDir(self.target)
                for part in (checkpoints.WEIGHTS, optimizer_state.FOLDER):
                    (self.own.aside / part).mkdir()
        self.folder: Path = world.broadcast_object(self.own.aside if self.own else None)
        self.writing.agree(self.target)

    def write(self, parts: Iterator[CheckpointFile] | list[CheckpointFile], apart: bool) -> None:
        """Write ``parts``, by a thread where they lie ``apart`` from what is trained on."""
        if not apart:
            self._write(parts)
            return
        self.thread = threading.Thread(target=self._safely, args=(parts,), daemon=True, name="save")
        self.thread.start()

    def _safely(self, parts: list[CheckpointFile]) -> None:
        try:
            self._write(self._let_go(parts))
        except BaseException as error:  # to be raised where it is seen
            self.failed = error

    @staticmethod
    def _let_go(parts: list[CheckpointFile]) -> Iterator[CheckpointFile]:
        """The parts, none of which is held longer than it takes to write it."""
        while parts:
            yield parts.pop(0)

    def _write(self, parts: Iterator[CheckpointFile] | list[CheckpointFile]) -> None:
        names: list[str] = []
        for name, write in parts:  # to the end, even after an error: all ranks take part
            beat()
            with self.writing:
                if self.writing.error is not None:
                    continue
                if name == checkpoints.WEIGHTS:
                    names += self._beside(write)
                else:
                    write(self.folder / name)
                    names.append(name)
        with self.writing:
            self.files = checkpoints.facts_of(self.folder, names)
            for name in names:
                flush(self.folder / name)
                beat()
        self.written = time.perf_counter()

    def _beside(self, write: Callable[[Path], None]) -> list[str]:
        """What ``write`` puts beside the shards, while other ranks' come and go there."""
        apart = self.folder / "beside"
        apart.mkdir()
        write(apart)
        made = checkpoints.file_names(apart)
        for name in made:
            place = self.folder / checkpoints.WEIGHTS / name
            place.parent.mkdir(exist_ok=True)
            (apart / name).rename(place)
        removed(apart)
        return [f"{checkpoints.WEIGHTS}/{name}" for name in made]

    def land(self) -> None:
        """Wait for all ranks, list the files and give the folder its name."""
        if self.thread is not None:
            self.thread.join()
        if self.failed is not None:
            raise self.failed
        everything = world.all_gather_object(self.files)
        self.writing.agree(self.target)
        if self.own is not None:
            with self.writing:
                whole = {name: fact for part in everything for name, fact in part.items()}
                checkpoints.write_manifest(self.folder, self.facts, dict(sorted(whole.items())))
                self.own.install()
        self.writing.agree(self.target)

    def close(self) -> None:
        """Remove what has no name; nothing is left where it has."""
        if self.own is not None and not self.busy:
            self.own.discard()


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
        met = [error for error in world.all_gather_object(self.error) if error]
        if met:
            raise UserError(
                f"{target} could not be saved: {met[0]}; checkpoints saved before stand. Make "
                "room there, then run the same command again"
            )


def weights(engine: TrainEngine, names: WeightMapping) -> Iterator[CheckpointFile]:
    """Hugging Face shards, each of a rank that holds its layers, and their index; under an
    adapter of the adapter alone, in the layers' own names. Every rank must take all that it is
    given. What is given does not change with what is trained."""
    adapter = engine.run.training.adapter
    stem = ADAPTER if adapter else MODEL
    if adapter:
        names = WeightMapping()
    layers = list(engine.modules)
    owners = [place * engine.data_size // len(layers) for place in range(len(layers))]
    mine = [name for name, owner in zip(layers, owners, strict=True) if owner == engine.data_rank]
    sizes = _sizes(engine, mine, names)
    plan = plan_shards(sizes, SHARD_BYTES)
    counts = world.all_gather_object(len(plan))
    begin, total = sum(counts[: torch.distributed.get_rank()]), sum(counts)
    files = {
        tensor: shard_name(begin + number, total, stem)
        for number, shard in enumerate(plan)
        for tensor in shard
    }
    waiting: dict[str, torch.Tensor] = {}
    last = {shard[-1] for shard in plan}
    with progress("save weights", len(layers), "layer", visible=world.is_main()) as bar:
        for name in layers:
            own = _parameters(engine, name)
            with engine.whole(own.values()):
                own = own if name in mine else {}
                for tensor, parts in names.tensors(own).items():
                    # always a copy: what is trained on must not be what waits to be written
                    waiting[tensor] = torch.cat([own[part].detach().cpu() for part in parts])
                    if tensor in last:
                        file = f"{checkpoints.WEIGHTS}/{files[tensor]}"
                        yield file, partial(write_shard, tensors=waiting)
                        waiting = {}
            bar.update()
    everything = world.all_gather_object((files, sizes))
    if world.is_main():
        by_name = {name: file for part, _ in everything for name, file in part.items()}
        bytes_ = {name: size for _, part in everything for name, size in part.items()}
        yield checkpoints.WEIGHTS, partial(write_index, files=by_name, sizes=bytes_, stem=stem)


def _parameters(engine: TrainEngine, layer: str) -> dict[str, torch.nn.Parameter]:
    """What a checkpoint keeps of a layer, by name in the whole model: its parameters, or those
    of an adapter only."""
    found = engine.parameters({layer: engine.modules[layer]})
    adapter = engine.run.training.adapter
    return {name: p for name, p in found if adapter is None or adapter.base_name(name) is None}


def _sizes(engine: TrainEngine, layers: list[str], names: WeightMapping) -> dict[str, int]:
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
