"""Where training begins: at a checkpoint of the run, or at the model's first weights."""

from __future__ import annotations

import sys
from typing import Any

from transformers import PretrainedConfig

from easyllm.data.rows import Rows
from easyllm.errors import UserError
from easyllm.models.config import model_folder
from easyllm.models.weights import RandomWeights, WeightFiles, Weights
from easyllm.parallelism import world
from easyllm.paths import RunPaths
from easyllm.spec.roles import Family
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import target_of, write
from easyllm.training.checkpoints import Checkpoint, newest

FREE = ("micro_batch_size", "global_batch_size", "checkpoint_activations")
"""Fields of a layout that leave the engine's state alone."""


def layout_facts(run: RunSpec) -> dict[str, Any]:
    """What the state of an engine depends on; a checkpoint is resumed only where all agree."""
    layout = {k: v for k, v in write(run.parallelism).items() if k not in FREE}
    return {
        **{f"parallelism.{key}": value for key, value in layout.items()},
        "parallelism.data_parallel": run.parallelism.replicas(run.hardware.ranks),
        "model.dtype": run.model.dtype,
        "training.optimizer._target_": target_of(type(run.training.optimizer)),
    }


def resume_point(run: RunSpec, rows: Rows, total: int) -> Checkpoint | None:
    """The checkpoint to go on from, the same on every rank; None to begin afresh.

    Raises UserError for a checkpoint of another layout, of other data, or past the end.
    """
    found: Checkpoint | None = None
    if world.first():
        found, damaged = newest(RunPaths(run).checkpoints)
        for path in damaged:
            instead = f"step {found.step}" if found else "the beginning"
            print(f"{path} is damaged; going on from {instead}", file=sys.stderr)
    found = world.from_first(found)
    if found is None:
        return None
    ours = layout_facts(run)
    for key in ours | dict(found.layout):
        if ours.get(key) != found.layout.get(key):
            raise UserError(
                f"{key}={ours.get(key)}, but {found.path} was saved with {found.layout.get(key)}; "
                "training resumes in the same layout only: give that, or another run_dir"
            )
    if found.data != rows.fingerprint:
        raise UserError(
            f"{found.path} was trained on other data than the store now holds; give another "
            "run_dir, or remove the run's checkpoints to train afresh"
        )
    if found.step > total:
        raise UserError(
            f"training.steps: {total} steps, but {found.path} has done {found.step}; give at "
            f"least {found.step}, or another run_dir"
        )
    return found


def starting_weights(
    run: RunSpec, config: PretrainedConfig, family: Family, resumed: Checkpoint | None
) -> Weights:
    """The resumed checkpoint's weights, the pretrained ones, or random ones."""
    if resumed is None and run.model.init == "random":
        return RandomWeights(config, run.seed)
    folder = resumed.weights if resumed else model_folder(run)
    assert folder is not None, "checked with the spec: pretrained weights have a path"
    return WeightFiles(folder, family.names())
