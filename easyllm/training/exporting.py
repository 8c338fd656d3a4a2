"""A checkpoint's weights as a plain Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig

from easyllm.errors import UserError
from easyllm.files import new_folder
from easyllm.models.config import described, family_of
from easyllm.models.layers import parameter_shapes
from easyllm.models.tensor_files import INDEX
from easyllm.models.weights import (
    DTYPES,
    WeightFiles,
    plan_shards,
    shard_name,
    write_index,
    write_shard,
)
from easyllm.progress import progress
from easyllm.spec.run import RunSpec
from easyllm.training.checkpoints import Checkpoint


def export(checkpoint: Checkpoint, target: Path, run: RunSpec) -> dict[str, Any]:
    """Write ``target`` whole, in shards of at most ``max_shard_gb``, in the layout and dtype
    that ``run.export`` asks for.

    One shard is in memory at a time. Returns the stage's metrics.
    """
    settings = run.export
    config, layout = _layout(checkpoint.weights, run)
    config["dtype"] = settings.dtype or config["dtype"]
    dtype = DTYPES[config["dtype"]]
    sizes = {name: shape.numel() * dtype.itemsize for name, shape in layout.shapes.items()}
    plan = plan_shards(sizes, settings.max_shard_gb * 1e9)
    files: dict[str, str] = {}
    with new_folder(target) as aside:
        with progress("export", sum(sizes.values()), "B") as bar:
            for number, names in enumerate(plan):
                file = shard_name(number, len(plan))
                write_shard(aside / file, {name: layout.tensor(name).to(dtype) for name in names})
                files |= dict.fromkeys(names, file)
                bar.update(sum(sizes[name] for name in names))
        write_index(aside, files, sizes)
        for beside in checkpoint.weights.iterdir():
            weights = beside.suffix == ".safetensors" or beside.name == INDEX
            if not weights and not (settings.layout == "modern" and beside.match("modeling_*.py")):
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


class _Layout(NamedTuple):
    """The tensors to write: their shapes by name, and how to read each."""

    shapes: Mapping[str, torch.Size]
    tensor: Callable[[str], torch.Tensor]


def _layout(folder: Path, run: RunSpec) -> tuple[dict[str, Any], _Layout]:
    """``config.json`` and tensors of a checkpoint in the layout that is asked for."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if run.export.layout == "native":
        files = WeightFiles(folder)
        shapes = files.shapes()
        return config, _Layout(shapes, lambda name: files.tensor(name, shapes[name]))
    family = family_of(run, config["model_type"])
    if why := family.native_only(config):
        raise UserError(f"export.layout=modern: {why}; give export.layout=native")
    native = AutoConfig.from_pretrained(folder)
    modern = described(family.modern(native))
    layers = family.layers(native, run.model.attention)
    source = WeightFiles(folder, family.names())
    wanted = parameter_shapes(layers)

    def tensor(name: str) -> torch.Tensor:
        found = source.tensor(name, wanted[name])
        return torch.as_tensor(family.modern_tensor(native, name, found))

    return modern.to_dict(), _Layout(wanted, tensor)
