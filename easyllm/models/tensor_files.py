"""The files that hold a model's weights, and whether they are complete. Standard library only."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

from easyllm.errors import UserError
from easyllm.printable import some_of

MODEL, ADAPTER = "model", "adapter_model"
"""The prefixes of the names of weight files: those of a model, and of an adapter alone."""
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
ALONE = "holds an adapter without the model that it was trained on"
SAMPLES, SAMPLE_BYTES = 16, 4096
"""The number of places in a file that ``identity`` reads, and the bytes at each."""


def find(folder: Path, stem: str = MODEL) -> dict[str, Path] | Path:
    """The file of each tensor by an index, or the one file that holds all of them.

    Safetensors are preferred to ``.bin`` files. Raises UserError where there are none, or where an
    index cannot be read.
    """
    known = [(f"{stem}.safetensors.index.json", f"{stem}.safetensors")]
    if stem == MODEL:
        known.append((PICKLED_INDEX, PICKLED))
    for index, single in known:
        if (folder / index).exists():
            return _indexed(folder, folder / index)
        if (folder / single).exists():
            return folder / single
    if stem != MODEL:
        raise UserError(f"{folder} holds no adapter: it has no {known[0][1]}")
    raise UserError(
        f"{folder} has no {SINGLE} or {INDEX}, nor a {PICKLED}; give a folder with weights, or "
        "model.init=random"
    )


def adapter_only(folder: Path) -> bool:
    """Whether a folder holds an adapter's weights and no model's."""
    return any(folder.glob(f"{ADAPTER}*.safetensors")) and not paths(folder)


def identity(folder: Path) -> str:
    """A value that identifies the weights of a folder anywhere: a hash of the sizes of its files
    and of some of their bytes. Further training changes it."""
    digest = hashlib.sha256()
    for file in paths(folder):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as opened:
            for place in range(0, size, max(1, size // SAMPLES)):
                opened.seek(place)
                digest.update(opened.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def paths(folder: Path) -> list[Path]:
    """The weight files that a folder has or should have, and their index, sorted; empty where
    ``find`` finds no weights."""
    try:
        found = find(folder)
    except UserError:
        return []
    if isinstance(found, Path):
        return [found]
    index = folder / (INDEX if (folder / INDEX).exists() else PICKLED_INDEX)
    return sorted({*found.values(), index})


def problems(folder: Path) -> list[str]:
    """What is wrong with the weight files of a folder, as far as that is known without loading
    them: a file that is missing or incomplete, with the tensors that it should hold."""
    try:
        found = find(folder)
    except UserError as error:
        return [ALONE] if adapter_only(folder) else [str(error)]
    if isinstance(found, Path):
        reason = damage(found)
        return [reason] if reason else []
    tensors: dict[Path, list[str]] = {}
    for name, file in found.items():
        tensors.setdefault(file, []).append(name)
    return [
        f"{reason}; it should hold {some_of(sorted(names), 3)}"
        for file, names in sorted(tensors.items())
        if (reason := damage(file))
    ]


def damage(file: Path) -> str | None:
    """What is wrong with a weight file: missing, incomplete or of another format."""
    try:
        if file.suffix == ".safetensors":
            _, data = header(file)
            size = file.stat().st_size
            if size < data:
                return f"{file} has {size:,} of {data:,} bytes: its download did not end"
        elif not zipfile.is_zipfile(file) and not _old_pickle(file):
            if not file.exists():
                return f"{file} is not there"
            return f"{file} ends before its directory: its download did not end"
    except FileNotFoundError:
        return f"{file} is not there"
    except (OSError, ValueError) as error:
        return f"{file} cannot be read: {error}"
    return None


def header(file: Path) -> tuple[dict[str, Any], int]:
    """The ``dtype``, ``shape`` and ``data_offsets`` of the tensors of a safetensors file by name,
    and the size of the complete file. Raises ValueError for a file of another format.
    """
    with file.open("rb") as opened:
        start = opened.read(8)
        if len(start) < 8:
            raise ValueError(f"it has {len(start)} bytes only")
        (length,) = struct.unpack("<Q", start)
        if length > 1 << 30:
            raise ValueError("it is no safetensors file")
        text = opened.read(length)
    if len(text) < length:
        raise ValueError("it ends within its header")
    tensors = json.loads(text)
    tensors.pop("__metadata__", None)
    ends = (tensor["data_offsets"][1] for tensor in tensors.values())
    return tensors, 8 + length + max(ends, default=0)


def _old_pickle(file: Path) -> bool:
    """Whether the file has torch's format before 1.6, which is a sequence of pickles."""
    try:
        with file.open("rb") as opened:
            return opened.read(2) == b"\x80\x02"
    except FileNotFoundError:
        return False


def _indexed(folder: Path, index: Path) -> dict[str, Path]:
    try:
        named: dict[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
        return {name: folder / file for name, file in named.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} cannot be read: {error!r}; fetch it again") from error
