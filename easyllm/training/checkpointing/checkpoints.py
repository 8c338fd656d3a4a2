"""Checkpoints on disk: which are complete, which is the newest, which can be removed. Light.

``checkpoints/step-00000012/`` holds ``weights/`` (a plain Hugging Face folder), ``optimizer/``
(its state by parameter name) and ``manifest.json`` with every file's size and hash, and what
the checkpoint was trained with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easyllm.files import read_record, removed, sha256, write_record
from easyllm.heartbeat import beat

MANIFEST = "manifest.json"
WEIGHTS = "weights"
DAMAGED = "damaged-"
"""The prefix of the name of a quarantined checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are all there, each as long as it should be."""

    path: Path
    step: int
    samples: int
    """Samples trained so far."""
    trained_with: Mapping[str, Any]
    """The settings that decide how training continues, by dotted key."""
    files: Mapping[str, Mapping[str, Any]]
    """``bytes`` and ``sha256`` of every file, by its path in the folder."""

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS

    def changed(self, names: Iterable[str], threads: int = 1) -> list[str]:
        """What is wrong with the content of the files ``names``; reads all of them, as many at
        once as there are ``threads``."""
        names = list(names)
        changed = []
        with ThreadPoolExecutor(threads) as pool:
            found = pool.map(lambda name: sha256(self.path / name), names)
            for name, content in zip(names, found, strict=True):
                beat()
                if content != self.files[name]["sha256"]:
                    changed.append(f"the content of {name} is not what was saved")
        return changed


def location(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08}"


def listed(checkpoints: Path) -> list[Path]:
    """Every checkpoint, whole or not, the newest first."""
    return sorted(checkpoints.glob("step-*"), reverse=True)


def examined(path: Path) -> Checkpoint | str:
    """The checkpoint at ``path``, or what is wrong with it; no content is read."""
    try:
        manifest = read_record(path / MANIFEST)
        facts = {key: manifest[key] for key in ("step", "samples", "trained_with", "files")}
        for name, file in facts["files"].items():
            found = (path / name).stat().st_size
            if found != file["bytes"]:
                return f"{name} has {found:,} of {file['bytes']:,} bytes"
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(path)} is not there"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read: {error!r}"
    return Checkpoint(path=path, **facts)


def opened(path: Path) -> Checkpoint | None:
    """The checkpoint at ``path``, or None unless every file is there in full."""
    found = examined(path)
    return found if isinstance(found, Checkpoint) else None


def newest(checkpoints: Path) -> tuple[Checkpoint | None, list[Path]]:
    """The newest checkpoint whose files are all there, and the newer ones that lack some."""
    damaged: list[Path] = []
    for path in listed(checkpoints):
        if found := opened(path):
            return found, damaged
        damaged.append(path)
    return None, damaged


def facts_of(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The manifest's entries for the files ``names`` of a folder."""
    found = {}
    for name in names:
        found[name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        beat()
    return found


def file_names(folder: Path) -> list[str]:
    """The files of a checkpoint that is being written, by their paths in it, sorted."""
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def write_manifest(
    folder: Path, facts: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Write the manifest of a checkpoint whose files are all there."""
    if files is None:
        files = facts_of(folder, file_names(folder))
    write_record(folder / MANIFEST, {**facts, "files": files})


def quarantine(path: Path) -> Path:
    """Rename a damaged checkpoint so that it no longer counts as one. It is removed once a newer
    one is complete."""
    target = path.with_name(DAMAGED + path.name)
    removed(target)
    return path.rename(target)


def clear_leftovers(checkpoints: Path) -> None:
    """Remove the files of saves that were interrupted."""
    _remove(checkpoints.glob(".step-*"))


def prune(checkpoints: Path, keep: int, keep_every: int | None = None) -> None:
    """Remove checkpoints older than the ``keep`` newest complete ones, unless their step is a
    multiple of ``keep_every``, and damaged ones before the newest. A checkpoint that cannot be
    removed is reported, and is tried again next time."""
    whole = [found for path in listed(checkpoints) if (found := opened(path))]
    if not whole:
        return
    kept = {found.path for found in whole[:keep]}
    kept |= {found.path for found in whole if keep_every and found.step % keep_every == 0}
    old = [path for path in listed(checkpoints) if path < whole[0].path]
    quarantined = [
        path
        for path in checkpoints.glob(f"{DAMAGED}step-*")
        if path.name.removeprefix(DAMAGED) <= whole[0].path.name
    ]
    _remove([*(set(old) - kept), *quarantined])


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        removed(folder)
