"""Saving a checkpoint from all ranks as one folder that is either complete or absent.

A save has three parts. First, all ranks copy their share into host memory, which needs
communication where weights are split. Second, each rank writes its share, which needs none. A
thread may do that while training continues; or each file is written as it is copied, so that host
memory need not hold all of them. Third, when all have written, rank 0 lists the files and renames
the folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import PretrainedConfig

from easyllm.data.chat.template_text import set_defaults
from easyllm.models.config import write_description
from easyllm.models.weight_mapping import WeightMapping
from easyllm.parallelism import world
from easyllm.parallelism.engine import TrainEngine
from easyllm.paths import RunPaths
from easyllm.spec.run import RunSpec
from easyllm.training.checkpointing import checkpoints, optimizer_state
from easyllm.training.checkpointing.pending_save import CheckpointFile, PendingSave
from easyllm.training.checkpointing.weight_shards import WeightShards


class Saver:
    """Saves a run's checkpoints, one at a time.

    Whether ``conversations`` were trained decides which tokens end generation.
    ``template_arguments``, numbers of answers by their arguments as JSON, decides the defaults of
    the exported chat template.
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
        self.pending: PendingSave | None = None
        self.stalled: float | None = None
        """Seconds that training waited for checkpoints since the last call of ``metrics``."""
        self.longest = 0.0
        """Seconds of the longest save, from its beginning until it was complete."""
        self.whole: dict[str, Any] = {}
        self.last = time.monotonic()
        """When the last save began, or training if there was none."""

    def begin(self, engine: TrainEngine, facts: dict[str, Any]) -> None:
        """Save ``checkpoints/step-N`` for ``facts["step"]``; every rank must call it.

        Returns when it is complete, or, with ``training.checkpoint.asynchronous``, when all of it
        is in host memory. It first waits for the save before. Raises UserError on every rank if any
        could not write; older checkpoints are not changed.
        """
        self.finish()
        begin, self.last = time.perf_counter(), time.monotonic()
        pending = PendingSave(checkpoints.location(self.root, facts["step"]), facts)
        try:
            pending.open()
            parts = self._parts(engine)
            pending.write(list(parts) if self.asynchronous else parts, self.asynchronous)
        except BaseException:
            pending.close()
            raise
        self.pending = pending
        self._stood_still(begin)
        if not self.asynchronous:
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if any, and give it its name; every rank
        must call this. Raises UserError as ``begin`` does."""
        pending, self.pending = self.pending, None
        if pending is None:
            return
        begin = time.perf_counter()
        world.beat(f"saving step {pending.facts['step']}")
        try:
            pending.finish()
        finally:
            pending.close()
        if world.is_main():
            kept = self.run.training.checkpoint
            checkpoints.prune(self.root, kept.keep, kept.keep_every)
        world.wait_for_all()
        seconds = pending.written - pending.begun
        self.longest = max(self.longest, time.perf_counter() - pending.begun)
        self.whole = {"saved_step": pending.facts["step"], "write_seconds": seconds}
        self._stood_still(begin)

    @property
    def written(self) -> bool:
        """Whether this rank has written its share of a checkpoint that has no name yet."""
        return self.pending is not None and not self.pending.busy

    def metrics(self) -> dict[str, Any]:
        """For the line of metrics: how long training waited for checkpoints since the last call,
        and the newest one completed since, with the seconds it took."""
        found = self.whole
        if self.stalled is not None:
            found = {"save_seconds": self.stalled, **found}
        self.stalled, self.whole = None, {}
        return found

    def _stood_still(self, since: float) -> None:
        self.stalled = (self.stalled or 0.0) + time.perf_counter() - since

    def _parts(self, engine: TrainEngine) -> Iterator[CheckpointFile]:
        """What this rank writes; every rank must take all of it."""
        for number, share in enumerate(optimizer_state.shares(engine)):
            file = optimizer_state.file_name(world.rank(), number)
            yield f"{optimizer_state.FOLDER}/{file}", partial(save_file, share)
        weights = WeightShards.of(engine, self.names)
        yield from weights.files()
        if world.is_main():
            yield checkpoints.WEIGHTS, weights.write_index
            yield checkpoints.WEIGHTS, self._describe

    def _describe(self, folder: Path) -> None:
        write_description(self.run, self.config, folder, self.conversations)
        if len(self.template_arguments) == 1:
            # every answer was trained with these, so the served model uses them too
            (arguments,) = map(json.loads, self.template_arguments)
            if arguments:
                set_defaults(folder, arguments)
