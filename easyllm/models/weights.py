"""Weights by parameter name: read from a model's files or drawn at random, and written as Hugging
Face shards."""

from __future__ import annotations

import functools
import json
import math
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from easyllm.errors import UserError
from easyllm.models import tensor_files
from easyllm.models.layers import LayerSpec
from easyllm.models.text_part import text_names
from easyllm.models.weight_mapping import RowMapping, Shape, WeightMapping
from easyllm.printable import some_of

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
ANY_SHAPE = (1, 1)
"""For names of embeddings and heads, which no mapping splits by shape."""
FIX = (
    "the files and the configuration are not of one model, or their download did not end: fetch "
    "them again, take back what model.overrides changes, or give model.init=random"
)


class Weights(Protocol):
    """The source of a model's parameters."""

    @property
    def bytes_read(self) -> int:
        """Bytes of tensors read from files so far."""
        ...

    @property
    def files_read(self) -> set[Path]:
        """Files that tensors were read from so far."""
        ...

    def problems(
        self,
        own: Mapping[str, torch.Size],
        model: Mapping[str, torch.Size],
        shared: Mapping[str, str],
    ) -> list[str]:
        """The reasons why parameters in ``own`` cannot be read, a sentence each, and problems with
        tensors that are neither in the whole ``model`` nor in ``shared``. ``shared`` has the names
        that files of tied models may hold, each with the name of the tensor that it must equal.
        Reads no other tensor."""
        ...

    def tensor(self, name: str, shape: torch.Size) -> torch.Tensor:
        """The parameter ``name``, in the dtype in which it is stored. Raises UserError."""
        ...


class WeightFiles:
    """The safetensors or ``.bin`` files of a folder in Hugging Face's format. Only the files of
    requested tensors are opened, and only the bytes of these are read.

    Raises UserError where the folder has no weights.
    """

    def __init__(
        self, folder: Path, names: WeightMapping | None = None, stem: str = tensor_files.MODEL
    ):
        self.folder, self.names = folder, names or RowMapping()
        self.bytes_read = 0
        self.files_read: set[Path] = set()
        found = tensor_files.find(folder, stem)
        if isinstance(found, Path):
            if reason := tensor_files.damage(found):
                raise UserError(f"{reason}; {FIX}")
            found = dict.fromkeys(_opened(found).shapes, found)
        self.published = text_names(found)
        self.files = {name: found[theirs] for name, theirs in self.published.items()}

    def tensor(self, name: str, shape: torch.Size) -> torch.Tensor:
        if reason := next(self._problems(name, shape), None):
            raise UserError(f"{reason}; {FIX}")
        tensor: torch.Tensor = self.names.loaded(name, shape, self._rows)
        return tensor

    def _rows(self, tensor: str, rows: slice) -> torch.Tensor:
        file = self.files[tensor]
        found = _opened(file).rows(self.published[tensor], rows)
        self.bytes_read += found.nbytes
        self.files_read.add(file)
        return found

    def shapes(self) -> dict[str, torch.Size]:
        """The shape of every tensor of the files, by its name there, without reading it."""
        return {n: _opened(f).shapes[self.published[n]] for n, f in self.files.items()}

    def problems(
        self,
        own: Mapping[str, torch.Size],
        model: Mapping[str, torch.Size],
        shared: Mapping[str, str],
    ) -> list[str]:
        found = dict.fromkeys(
            reason for name, shape in own.items() for reason in self._problems(name, shape)
        )
        places = {**model, **dict.fromkeys(shared, ANY_SHAPE)}
        spare = set(self.files)
        for name, shape in places.items():
            spare.difference_update(self.names.sources(name, shape))
        # tables in old checkpoints that every model computes itself
        spare = {name for name in spare if not name.endswith("rotary_emb.inv_freq")}
        for name, same in shared.items():
            if same in own and not self._equal(name, same):
                found[
                    f"{self.folder}: the configuration ties {name} to {same}, and the files hold "
                    "two different tensors, which transformers 5 keeps apart; give "
                    "model.overrides.tie_word_embeddings=false, or files of one"
                ] = None
        if spare:
            found[
                f"{self.folder} holds {len(spare)} tensors that the configuration has no place "
                f"for: {some_of(sorted(spare))}"
            ] = None
        return list(found)

    def _equal(self, first: str, second: str) -> bool:
        """Whether two tensors are the same, where the files hold both and can be read."""
        names = [next(iter(self.names.sources(name, ANY_SHAPE))) for name in (first, second)]
        places = [self.files[name] for name in names if name in self.files]
        if len(places) < 2 or any(map(_damage, places)):
            return True
        files = [_opened(place) for place in places]
        names = [self.published[name] for name in names]
        shapes = [file.shapes.get(name) for file, name in zip(files, names, strict=True)]
        if shapes[0] != shapes[1] or shapes[0] is None:
            return shapes[0] == shapes[1]
        parts = (slice(at, at + 4096) for at in range(0, shapes[0][0], 4096))  # not both complete
        return all(
            torch.equal(files[0].rows(names[0], part), files[1].rows(names[1], part))
            for part in parts
        )

    def _problems(self, name: str, shape: torch.Size) -> Iterator[str]:
        """Why the parameter ``name`` cannot be read."""
        for tensor, whole in self.names.sources(name, shape).items():
            if reason := self._problem(tensor, whole, name):
                yield reason

    def _problem(self, tensor: str, shape: Shape, name: str) -> str | None:
        file = self.files.get(tensor)
        if file is None:
            hint = ""
            if name == "lm_head.weight":
                hint = " (model.overrides.tie_word_embeddings=true if it shares the embedding)"
            return f"{self.folder} has no tensor {tensor} of shape {tuple(shape)}{hint}"
        if reason := _damage(file):
            return f"{reason}; {tensor} is to be read from it"
        found = _opened(file).shapes.get(self.published[tensor])
        if found is None:
            return f"{file} does not hold {tensor}, which its index says it does"
        if found != torch.Size(shape):
            return (
                f"{file}: {tensor} has shape {tuple(found)}, the configuration asks for "
                f"{tuple(shape)}"
            )
        return None


class _Safetensors:
    """A safetensors file; reading rows of a tensor reads their bytes."""

    def __init__(self, file: Path):
        self.file = file
        tensors, _ = tensor_files.header(file)
        self.shapes = {name: torch.Size(tensor["shape"]) for name, tensor in tensors.items()}

    def rows(self, name: str, rows: slice) -> torch.Tensor:
        with safe_open(self.file, framework="pt") as opened:
            if rows == slice(None):
                tensor: torch.Tensor = opened.get_tensor(name)
            else:
                # a copy: a view would keep the rest of the tensor with it
                tensor = opened.get_slice(name)[rows].clone()
        return tensor


class _Pickled:
    """A ``.bin`` file of torch, mapped into memory; nothing in it is executed."""

    def __init__(self, file: Path):
        load: Callable[..., Any] = functools.partial(
            torch.load, file, map_location="cpu", weights_only=True
        )
        try:
            try:
                self.tensors = load(mmap=True)
            except RuntimeError:  # a file of the format before torch 1.6, which cannot be mapped
                self.tensors = load()
        except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
            why = str(error).splitlines()[0]
            raise UserError(f"{file} cannot be read as weights: {why}; {FIX}") from error
        self.tensors = {
            name: tensor
            for name, tensor in self.tensors.items()
            if isinstance(tensor, torch.Tensor)
        }
        self.shapes = {name: tensor.shape for name, tensor in self.tensors.items()}

    def rows(self, name: str, rows: slice) -> torch.Tensor:
        # a copy: a mapped tensor would keep the whole file mapped
        tensor: torch.Tensor = self.tensors[name]
        return tensor[rows].clone()


def _opened(file: Path) -> _Safetensors | _Pickled:
    """The opened file, from a small cache: layers are read in order, so few files are needed at a
    time."""
    stat = file.stat()
    return _open(file, stat.st_mtime_ns, stat.st_size)


def _damage(file: Path) -> str | None:
    """``tensor_files.damage``, cached while the file does not change."""
    try:
        stat = file.stat()
    except OSError:
        return tensor_files.damage(file)
    return _damage_of(file, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=256)
def _damage_of(file: Path, time: int, size: int) -> str | None:
    return tensor_files.damage(file)


@functools.lru_cache(maxsize=2)
def _open(file: Path, time: int, size: int) -> _Safetensors | _Pickled:
    try:
        return _Safetensors(file) if file.suffix == ".safetensors" else _Pickled(file)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read as weights: {error}; {FIX}") from error


def fill(
    layer: nn.Module, name: str, weights: Weights, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """Give the layer called ``name`` its parameters, which are on the meta device."""
    parameters = dict(layer.named_parameters())
    for path, empty in layer.state_dict(keep_vars=True).items():
        owner, _, attribute = path.rpartition(".")
        value = weights.tensor(f"{name}.{path}", empty.shape)
        if path in parameters:
            value = value.to(device=device, dtype=dtype)
            filled = nn.Parameter(value, requires_grad=empty.requires_grad)
            setattr(layer.get_submodule(owner), attribute, filled)
        else:  # a buffer keeps the dtype that its model gives it
            setattr(layer.get_submodule(owner), attribute, value.to(device, empty.dtype))
    return layer.to(device)


def filled(
    specs: Iterable[LayerSpec], weights: Weights, dtype: torch.dtype, device: torch.device
) -> dict[str, nn.Module]:
    """All layers of a model as they are trained, with their weights, by name."""
    built: dict[str, Any] = {}
    for spec in specs:
        built[spec.name] = module = spec.trained()
        if spec.tied_to is None:
            fill(module, spec.name, weights, dtype, device)
        else:
            module.weight = built[spec.tied_to].weight
    return built


def plan_shards(sizes: Mapping[str, int], limit: float) -> list[list[str]]:
    """Names in order, in groups of at most ``limit`` bytes; a larger tensor gets its own group."""
    shards: list[list[str]] = []
    room = -math.inf
    for name, size in sizes.items():
        if size > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return shards


def shard_name(number: int, count: int, stem: str = tensor_files.MODEL) -> str:
    """File name of shard ``number`` (from 0) of ``count``."""
    part = "" if count == 1 else f"-{number + 1:05}-of-{count:05}"
    return f"{stem}{part}.safetensors"


def write_shard(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    # safetensors refuses views; transformers refuses files without the format
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors makes files that only the owner can read


def write_index(
    folder: Path,
    files: Mapping[str, str],
    sizes: Mapping[str, int],
    stem: str = tensor_files.MODEL,
) -> None:
    """Write the index over several shards; a single shard needs none."""
    if set(files.values()) != {shard_name(0, 1, stem)}:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": dict(sorted(files.items())),
        }
        file = folder / f"{stem}.safetensors.index.json"
        file.write_text(json.dumps(index, indent=2) + "\n", "utf-8")
