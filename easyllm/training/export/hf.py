"""A checkpoint's weights as a plain Hugging Face folder."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig

from easyllm.data.tokenizers.portable import read_otherwise
from easyllm.errors import UserError
from easyllm.files import atomic_dir
from easyllm.models import source, tensor_files
from easyllm.models.adapted import MergedWeights, adapter_files
from easyllm.models.compatible import settle_tokenizer
from easyllm.models.config import described, family_of, model_folder, write_config
from easyllm.models.layers import LayerSpec, param_specs, tensor_shapes
from easyllm.models.weight_mapping import RowMapping, WeightMapping
from easyllm.models.weights import (
    DTYPES,
    WeightFiles,
    plan_shards,
    shard_name,
    write_index,
    write_shard,
)
from easyllm.progress import progress
from easyllm.spec.model import trainable
from easyllm.spec.roles import Adapter
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import flatten, write
from easyllm.training.checkpointing.checkpoints import Checkpoint
from easyllm.training.checkpointing.resuming import first_weights

UNDER_ADAPTER = ("training.adapter", "model.path", "model.revision", "model.init", "seed")
"""The keys that an adapter's base model and its own weights depend on."""

CODE = ("modeling_*.py", "both_transformers.py")
"""Code files of a model that is not in transformers; a tokenizer's code has other names."""


def export(checkpoint: Checkpoint, target: Path, run: RunSpec) -> dict[str, Any]:
    """Write all of ``target``, in shards of at most ``max_shard_gb``, in the layout and dtype of
    ``run.export``. For an adapter write the merged model, or the adapter alone.

    One shard is in memory at a time. Returns the stage's metrics.
    """
    facts = {"checkpoint": str(checkpoint.path), "step": checkpoint.step, "folder": str(target)}
    if adapter := _adapter(checkpoint, run):
        if run.export.adapter == "adapter":
            return facts | _export_adapter(checkpoint, target, run, adapter)
    elif run.export.adapter == "adapter":
        raise UserError(
            f"export.adapter=adapter: {checkpoint.path} holds a model; give export.adapter=merged"
        )
    return facts | _export_model(checkpoint, target, run, adapter)


def _export_model(
    checkpoint: Checkpoint, target: Path, run: RunSpec, adapter: Adapter | None
) -> dict[str, Any]:
    settings = run.export
    config, layout = _layout(checkpoint.weights, run, adapter)
    config["dtype"] = settings.dtype or config["dtype"]
    if settings.format == "gguf":
        from easyllm.training.export import gguf

        return gguf.export(checkpoint.weights, target, run, config, *layout)
    dtype = DTYPES[config["dtype"]]
    sizes = {name: shape.numel() * dtype.itemsize for name, shape in layout.shapes.items()}
    plan = plan_shards(sizes, settings.max_shard_gb * 1e9)
    files: dict[str, str] = {}
    with atomic_dir(target) as temporary:
        with progress("export", sum(sizes.values()), "B") as bar:
            for number, names in enumerate(plan):
                file = shard_name(number, len(plan))
                write_shard(
                    temporary / file, {name: layout.tensor(name).to(dtype) for name in names}
                )
                files |= dict.fromkeys(names, file)
                bar.update(sum(sizes[name] for name in names))
        write_index(temporary, files, sizes)
        modern = CODE if settings.layout == "canonical" else ()
        _copy_beside(checkpoint.weights, temporary, *modern)
        settle_tokenizer(temporary)  # a checkpoint of an older version may not be
        write_config(temporary, config)
    facts: dict[str, Any] = {
        "tensors": len(sizes),
        "shards": len(plan),
        "bytes": sum(sizes.values()),
    }
    if (target / "tokenizer.json").is_file() and (warning := read_otherwise(target)):
        print(f"{target}: {warning}", file=sys.stderr, flush=True)
        facts["warning"] = warning
    return facts


def _export_adapter(
    checkpoint: Checkpoint, target: Path, run: RunSpec, adapter: Adapter
) -> dict[str, Any]:
    """The folder that peft loads, with the tokenizer that it was trained with."""
    config = json.loads((checkpoint.weights / "config.json").read_text("utf-8"))
    native = AutoConfig.from_pretrained(checkpoint.weights)
    family = family_of(run, config["model_type"])
    linears = list(trainable.linears(param_specs(family.layers(native, run.model.attention))))
    files = adapter_files(checkpoint.weights)
    dtype = DTYPES[run.export.dtype or config["dtype"]]
    parts = {name: files.tensor(name, size).to(dtype) for name, size in files.shapes().items()}
    with atomic_dir(target) as temporary:
        _copy_beside(checkpoint.weights, temporary, "config.json", "generation_config.json", *CODE)
        settle_tokenizer(temporary)
        path, made = run.model.path, model_folder(run)
        assert path, "checked with the spec: an adapter of random weights is merged"
        place = source.local(path)  # a converted file: the folder that it was converted into
        base = str(made) if place and place.is_file() else path
        adapter.write(temporary, base, linears, parts, run.model.revision)
    sizes = [part.nbytes for part in parts.values()]
    return {"tensors": len(sizes), "shards": 1, "bytes": sum(sizes)}


def _copy_beside(weights: Path, to: Path, *but: str) -> None:
    """Copy the files beside the weights of a checkpoint."""
    for beside in weights.iterdir():
        tensors = beside.suffix == ".safetensors" or beside.name.endswith(".safetensors.index.json")
        if not tensors and not any(beside.match(pattern) for pattern in but):
            shutil.copyfile(beside, to / beside.name)


def _adapter(checkpoint: Checkpoint, run: RunSpec) -> Adapter | None:
    """The adapter that the checkpoint holds, which must be the one of this run."""
    if not tensor_files.adapter_only(checkpoint.weights):
        return None
    now = json.loads(json.dumps(flatten(write(run))))
    differences = [
        f"{key}: then {then}, now {now.get(key)}"
        for key, then in checkpoint.trained_with.items()
        if key.startswith(UNDER_ADAPTER) and now.get(key) != then
    ]
    if differences or run.training.adapter is None:
        raise UserError(
            f"{checkpoint.path} holds an adapter that belongs to another run:\n  "
            + "\n  ".join(differences)
            + "\nexport it with that run's run.yaml: python -m easyllm RUN_DIR/run.yaml "
            "stages=[export]"
        )
    return run.training.adapter


class _Layout(NamedTuple):
    """The tensors to write: their shapes by name, and how to read each."""

    shapes: Mapping[str, torch.Size]
    tensor: Callable[[str], torch.Tensor]


def _layout(folder: Path, run: RunSpec, adapter: Adapter | None) -> tuple[dict[str, Any], _Layout]:
    """``config.json`` and tensors of a checkpoint in the layout of ``run.export``."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    family = family_of(run, config["model_type"])
    if adapter is None and (run.export.layout == "native" or family.one_layout):
        files = WeightFiles(folder)
        shapes = files.shapes()
        return config, _Layout(shapes, lambda name: files.tensor(name, shapes[name]))
    native = AutoConfig.from_pretrained(folder)
    layers = family.layers(native, run.model.attention)
    wanted = tensor_shapes(layers)
    held: WeightFiles | MergedWeights = (
        MergedWeights(
            first_weights(run, native, family), adapter_files(folder), adapter, param_specs(layers),
            DTYPES[config["dtype"]],
        )
        if adapter
        else WeightFiles(folder, family.names(native))
    )  # fmt: skip
    if run.export.layout == "native" or family.one_layout:
        return config, _stored(layers, held, family.names(native) or RowMapping())
    if why := family.native_only(config):
        raise UserError(f"export.layout=canonical: {why}; give export.layout=native")
    modern = described(family.canonical(native))

    def tensor(name: str) -> torch.Tensor:
        found = held.tensor(name, wanted[name])
        return torch.as_tensor(family.canonical_tensor(native, name, found))

    return json.loads(modern.to_json_string()), _Layout(wanted, tensor)


def _stored(
    layers: Sequence[LayerSpec], held: WeightFiles | MergedWeights, names: WeightMapping
) -> _Layout:
    """The tensors with their names in published files. One layer is in memory at a time."""
    own = {spec.name: tensor_shapes([spec]) for spec in layers}
    shapes: dict[str, torch.Size] = {}
    layer_of: dict[str, str] = {}
    for layer, wanted in own.items():
        empty = {name: torch.empty(shape, device="meta") for name, shape in wanted.items()}
        found = {name: tensor.shape for name, tensor in names.stored(empty).items()}
        shapes |= found
        layer_of |= dict.fromkeys(found, layer)

    @functools.lru_cache(maxsize=1)
    def read(layer: str) -> dict[str, torch.Tensor]:
        parameters = {name: held.tensor(name, shape) for name, shape in own[layer].items()}
        return names.stored(parameters)

    return _Layout(shapes, lambda name: read(layer_of[name])[name])
