"""A checkpoint's weights as a plain Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from easyllm.files import new_folder
from easyllm.models.weights import (
    DTYPES,
    INDEX,
    WeightFiles,
    plan_shards,
    shard_name,
    write_index,
    write_shard,
)
from easyllm.progress import progress
from easyllm.spec.run import ExportSpec
from easyllm.training.checkpoints import Checkpoint


def export(checkpoint: Checkpoint, target: Path, settings: ExportSpec) -> dict[str, Any]:
    """Write ``target`` whole, in shards of at most ``max_shard_gb``; cast where a dtype is asked.

    One shard is in memory at a time. Returns the stage's metrics.
    """
    source = WeightFiles(checkpoint.weights)
    config = json.loads((checkpoint.weights / "config.json").read_text("utf-8"))
    config["dtype"] = settings.dtype or config["dtype"]
    dtype = DTYPES[config["dtype"]]
    shapes = source.shapes()
    sizes = {name: shape.numel() * dtype.itemsize for name, shape in shapes.items()}
    plan = plan_shards(sizes, settings.max_shard_gb * 1e9)
    files: dict[str, str] = {}
    with new_folder(target) as aside:
        with progress("export", sum(sizes.values()), "B") as bar:
            for number, names in enumerate(plan):
                file = shard_name(number, len(plan))
                tensors = {name: source.tensor(name, shapes[name]).to(dtype) for name in names}
                write_shard(aside / file, tensors)
                files |= dict.fromkeys(names, file)
                bar.update(sum(sizes[name] for name in names))
        write_index(aside, files, sizes)
        for beside in checkpoint.weights.iterdir():
            if beside.suffix != ".safetensors" and beside.name != INDEX:
                shutil.copyfile(beside, aside / beside.name)
        text = json.dumps(config, indent=2) + "\n"
        (aside / "config.json").write_text(text, "utf-8")
    return {
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.step,
        "folder": str(target),
        "tensors": len(sizes),
        "shards": len(plan),
        "bytes": sum(sizes.values()),
    }
