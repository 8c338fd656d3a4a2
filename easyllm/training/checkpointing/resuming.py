"""Where training begins: at a checkpoint of the run, or at the model's first weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from easyllm.data.dataset.rows import Rows
from easyllm.errors import UserError
from easyllm.models import tensor_files
from easyllm.models.adapted import AdaptedWeights, FreshAdapter, adapter_files
from easyllm.models.config import model_folder
from easyllm.models.random_weights import RandomWeights
from easyllm.models.weights import WeightFiles, Weights
from easyllm.parallelism import world
from easyllm.paths import RunPaths
from easyllm.spec.defaults import default
from easyllm.spec.problems import ABSENT
from easyllm.spec.roles import Family
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import flatten, write
from easyllm.training.checkpointing import checkpoints
from easyllm.training.checkpointing.checkpoints import Checkpoint
from easyllm.training.checkpointing.resume_policy import affects_loss, may_change

DATA = "data"
"""The key of the rows' fingerprint among the settings."""
BASE = "model.weights"
"""The key of the fingerprint of an adapter's base model."""


@dataclass(frozen=True)
class ResumePoint:
    """Where training begins."""

    checkpoint: Checkpoint | None = None
    """The checkpoint to resume; None for the model's first weights."""
    weights_only: bool = False
    """Whether only its weights are used, and training begins at step 0."""

    @property
    def step(self) -> int:
        return self.checkpoint.step if self.checkpoint and not self.weights_only else 0

    @property
    def samples(self) -> int:
        return self.checkpoint.samples if self.checkpoint and not self.weights_only else 0


def settings(run: RunSpec, rows: Rows) -> dict[str, Any]:
    """The settings that decide how training continues, by dotted key; a checkpoint keeps them."""
    keys = flatten(write(run))
    found = {key: value for key, value in keys.items() if affects_loss(key) or may_change(key)}
    # an empty map means the same as an absent one
    found = {key: value for key, value in found.items() if value != {}}
    if run.training.adapter and run.model.init == "pretrained" and (folder := model_folder(run)):
        found[BASE] = tensor_files.identity(folder)
    found["parallelism.data_parallel"] = run.parallelism.replicas(run.hardware.ranks)
    plain = json.loads(json.dumps({**found, DATA: rows.fingerprint}))  # as a file gives it back
    return dict(plain)


def resume_point(run: RunSpec, rows: Rows, total: int) -> ResumePoint:
    """Where to begin, the same on every rank.

    Raises UserError where all checkpoints are damaged, and where training would not continue as
    without the interruption, unless ``training.resume`` allows it.
    """
    root, how = RunPaths(run).checkpoints, run.training.resume
    if how == "never":
        return ResumePoint()
    found = _newest_good(root)
    if found is None:
        return ResumePoint()
    now = settings(run, rows)
    then = {**_unknown_then(run, found.trained_with, now), **found.trained_with}
    differences = differing(then, now)
    if found.step > total:
        differences.append(f"training.steps: then {found.step} done, now {total}")
    if differences and how == "exact":
        raise UserError(
            f"training.resume=exact: {found.path} was trained with other settings, and the losses "
            "would not be those of an uninterrupted run:\n  "
            + "\n  ".join(differences)
            + "\ngive the earlier settings; or training.resume=weights, to begin at step 0 with "
            "its weights and a fresh optimizer; or another run_dir"
        )
    if differences:
        _same_kind(found, run)
        _say(f"{found.path} was trained with other settings:", *differences)
        _say("training.resume=weights: begins at step 0 with its weights and a fresh optimizer")
        return ResumePoint(found, weights_only=True)
    if moved := differing(found.trained_with, now, decided=False):
        _say(f"resuming from {found.path}, including the optimizer's state, with", *moved)
    return ResumePoint(found)


def _unknown_then(run: RunSpec, then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of keys that decide the losses and are not in the checkpoint, because the fields
    did not exist yet."""
    absent = {key: default(run, key) for key in now if key not in then and affects_loss(key)}
    return {key: value for key, value in absent.items() if value is not ABSENT}


def differing(
    then: Mapping[str, Any], now: Mapping[str, Any], *, decided: bool = True
) -> list[str]:
    """The keys whose values differ, with both values, a line each: those that decide the following
    losses, or those that change them by rounding only and may change the end of the run."""
    return [
        f"{key}: then {_shown(then.get(key))}, now {_shown(now.get(key))}"
        for key in dict.fromkeys([*now, *then])
        if then.get(key) != now.get(key)
        and (affects_loss(key) or key in (DATA, BASE)) == decided
        # keys that only one of the two layouts has need not be reported
        and (decided or (key in then and key in now))
    ]


def starting_weights(
    run: RunSpec, config: PretrainedConfig, family: Family, resumed: Checkpoint | None
) -> Weights:
    """The resumed checkpoint's weights, the pretrained ones, or random ones. With an adapter they
    are the model's first weights and the adapter's parameters, which alone are in a checkpoint."""
    if adapter := run.training.adapter:
        parts = adapter_files(resumed.weights) if resumed else FreshAdapter(adapter, run.seed)
        return AdaptedWeights(first_weights(run, config, family), parts, adapter)
    if resumed:
        return WeightFiles(resumed.weights, family.names(config))
    return first_weights(run, config, family)


def first_weights(run: RunSpec, config: PretrainedConfig, family: Family) -> Weights:
    """The weights that the model has before training."""
    if run.model.init == "random":
        fresh: Weights | None = family.fresh(config, run.seed)
        return fresh or RandomWeights(config, run.seed)
    folder = model_folder(run)
    assert folder is not None, "checked with the spec: pretrained weights have a path"
    return WeightFiles(folder, family.names(config))


def archive(paths: RunPaths, but: Path | None = None) -> None:
    """Archive the metrics and all checkpoints ``but`` one of what was trained before, as
    ``checkpoints.1`` and ``metrics.1.jsonl``."""
    old = [path for path in reversed(checkpoints.listed(paths.checkpoints)) if path != but]
    if not old:
        return
    number = 1
    while (place := paths.root / f"checkpoints.{number}").exists():
        number += 1
    if paths.metrics.exists():
        paths.metrics.rename(paths.root / f"metrics.{number}.jsonl")
    place.mkdir()
    for path in old:  # the newest last: if this is interrupted, it starts again with the same one
        path.rename(place / path.name)
    _say(f"what was trained before is in {place}")


def _same_kind(found: Checkpoint, run: RunSpec) -> None:
    """Raise UserError where this run cannot start from the weights of the checkpoint."""
    adapter = tensor_files.adapter_only(found.weights)
    if adapter != (run.training.adapter is not None):
        held, wanted = ("an adapter", "a model") if adapter else ("a model", "an adapter")
        raise UserError(
            f"training.resume=weights: {found.path} holds {held}, but {wanted} is to be trained; "
            "export it and give that folder as model.path, with another run_dir; or "
            "training.resume=never"
        )


def _newest_good(root: Path) -> Checkpoint | None:
    """The newest checkpoint that still has the content it was saved with; damaged ones are
    quarantined."""
    passed: list[str] = []
    for path in world.broadcast_object(checkpoints.listed(root)):
        world.beat(f"checking {path.name}")
        found = world.broadcast_object(checkpoints.examined(path) if world.is_main() else None)
        damage = [found] if isinstance(found, str) else _changed(found)
        if not damage:
            for line in passed:
                _say(f"{line}; resuming from step {found.step}")
            return _quarantine_newer(root, found)
        passed.append(f"{path.name} is damaged: {damage[0]}")
    if passed:
        raise UserError(
            f"no checkpoint under {root} can be loaded:\n  "
            + "\n  ".join(passed)
            + "\ngive training.resume=never to train from the beginning, or another run_dir"
        )
    return None


def _quarantine_newer(root: Path, found: Checkpoint) -> Checkpoint:
    """Quarantine all checkpoints newer than ``found``, which are damaged."""
    if world.is_main():
        for path in checkpoints.listed(root):
            if path > found.path:
                checkpoints.quarantine(path)
    world.wait_for_all()
    return found


def _changed(found: Checkpoint) -> list[str]:
    """What is wrong with the content of the files; each rank checks a part of them."""
    mine = sorted(found.files)[world.rank() :: world.size()]
    return [damage for part in world.all_gather_object(found.changed(mine)) for damage in part]


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)


def _say(*lines: str) -> None:
    if world.is_main():
        print("\n  ".join(lines), file=sys.stderr)
