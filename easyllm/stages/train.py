"""Trains the model on the token store, on as many ranks as the hardware has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easyllm.data.store import manifest
from easyllm.data.store.fingerprint import check_encoding
from easyllm.errors import UserError
from easyllm.models import source, tensor_files
from easyllm.spec.run import RunSpec
from easyllm.stages.base import Interrupted, Rank, Stage
from easyllm.training.checkpointing import checkpoints, resume_policy
from easyllm.training.stopping import Stopped, on_signals


class Train(Stage):
    name = "train"
    reads = (
        "seed",
        "model.path",
        "model.revision",
        "model.init",
        "model.dtype",
        "model.attention",
        "model.compile",
        "model.family",
        "model.config",
        "model.overrides",
        "data.sources",
        "data.dir",
        "data.seq_len",
        "data.packing",
        "data.long_conversations",
        "parallelism",
        "hardware.nodes",
        "hardware.devices_per_node",
        "hardware.device",
        "training.steps",
        "training.epochs",
        "training.adapter",
        "training.freeze",
        "training.deterministic",
        "training.loss",
        "training.optimizer",
        "training.schedule",
        "training.gradient_clipping",
        "training.router_aux_loss",
        "training.check_packing",
        "training.check_engine",
        "training.resume",
        "training.evaluate",
    )

    def may_change(self, run: RunSpec, key: str) -> bool:
        fresh = run.training.resume != "exact" and key.startswith(("training.", "parallelism."))
        hardware = key.startswith("hardware.")
        return fresh or hardware or key == "training.resume" or resume_policy.may_change(key)

    def ranks(self, run: RunSpec) -> int:
        return run.hardware.ranks

    def require(self, run: RunSpec) -> None:
        store = self.paths(run).store
        if not set(manifest.STAGES) & set(run.stages):
            last = manifest.last_stage(run, store) or "tokenize"
            check_encoding(run, store, manifest.require(store, last))

    def inputs(self, run: RunSpec) -> list[Path]:
        store = self.paths(run).store
        last = manifest.last_stage(run, store)
        files = [manifest.location(store, last)] if last else []
        place = source.local(run.model.path) if run.model.path else None
        if place and place.is_dir():
            files.append(place / "config.json")
            if run.model.init == "pretrained":
                files += tensor_files.paths(place)
        elif place:
            files.append(place)
        return files

    def outputs(self, run: RunSpec) -> list[Path]:
        return [self._last(run) / checkpoints.MANIFEST]

    def whole(self, run: RunSpec) -> bool:
        return checkpoints.opened(self._last(run)) is not None

    def lost(self, run: RunSpec) -> str:
        from easyllm.training.metrics import metrics_log

        found = checkpoints.opened(self._last(run))
        file = self.paths(run).metrics
        said = metrics_log.missing_steps(metrics_log.read(file), found.step if found else 0)
        return f"{file}: {said}" if said else ""

    def _last(self, run: RunSpec) -> Path:
        root = self.paths(run).checkpoints
        if run.training.steps is not None:
            return checkpoints.location(root, run.training.steps)
        found, _ = checkpoints.newest(root)
        return found.path if found else checkpoints.location(root, 0)

    def fetches(self, run: RunSpec) -> bool:
        return run.model.path is not None

    def prepare(self, run: RunSpec) -> None:
        path, weights = run.model.path, run.model.init == "pretrained"
        if path and source.local(path) is None:
            source.folder(path, self.paths(run).models, weights, run.model.revision)

    def work(self, run: RunSpec, rank: Rank) -> Mapping[str, Any]:
        if rank.local_count < rank.count:
            self.prepare(run)  # a machine that has no parent process of the run
        with on_signals() as stop:
            from easyllm.parallelism import world

            world.watch(rank.reports, rank.index, run.hardware.timeout_s)
            device = world.start(run.hardware.device, run.hardware.timeout_s)
            if run.training.deterministic:
                world.repeat_bits(device)
            # these import DeepSpeed, which chooses its accelerator only once
            from easyllm.data.dataset.rows import open_rows
            from easyllm.parallelism import shared_storage
            from easyllm.training.loop import train

            if rank.count > rank.local_count:
                shared_storage.check(run, self.inputs(run))
            world.beat("reading the token store")
            try:
                metrics = train(run, open_rows(run), device, stop)
            except Stopped as stopped:
                raise Interrupted(str(stopped)) from None
            except RuntimeError as error:
                if operation := world.unrepeatable(error):
                    raise UserError(f"{operation}; give training.deterministic=false") from error
                raise
            world.stop()
            return metrics
