"""Checkpoints on disk: which are whole, which is the newest, which may go. Light.

``checkpoints/step-00000012/`` holds ``weights/`` (a plain Hugging Face folder), ``engine/``
(DeepSpeed's own state) and ``manifest.json`` with every file's size.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easyllm.files import read_json, write_json

MANIFEST = "manifest.json"
WEIGHTS = "weights"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint."""

    path: Path
    step: int
    samples: int
    """Samples trained so far."""
    layout: Mapping[str, Any]
    data: str
    """Fingerprint of the rows trained on."""

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS


def location(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08}"


def opened(path: Path) -> Checkpoint | None:
    """The checkpoint at ``path``, or None unless every file is there in full."""
    try:
        manifest = read_json(path / MANIFEST)
        files: dict[str, int] = manifest["files"]
        if any((path / name).stat().st_size != size for name, size in files.items()):
            return None
        facts = {key: manifest[key] for key in ("step", "samples", "layout", "data")}
    except (OSError, ValueError, KeyError):
        return None
    return Checkpoint(path=path, **facts)


def newest(checkpoints: Path) -> tuple[Checkpoint | None, list[Path]]:
    """The newest whole checkpoint, and the newer ones that are damaged."""
    damaged: list[Path] = []
    for path in sorted(checkpoints.glob("step-*"), reverse=True):
        if found := opened(path):
            return found, damaged
        damaged.append(path)
    return None, damaged


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of a checkpoint whose files are all there."""
    files = {
        str(file.relative_to(folder)): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    write_json(folder / MANIFEST, {**facts, "files": files})


def tidy(checkpoints: Path, keep: int) -> None:
    """Remove what is older than the ``keep`` newest whole checkpoints, damaged ones before the
    newest, and what saves that were cut short left behind."""
    whole = [path for path in sorted(checkpoints.glob("step-*")) if opened(path)]
    old = [p for p in checkpoints.glob("step-*") if whole and p < whole[-1]]
    for path in [*(set(old) - set(whole[-keep:])), *checkpoints.glob(".step-*")]:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)
