"""A run's directory that was moved or copied, with the run.yaml in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easyllm.paths import RECORDS, RUN_FILE

PLACES = (("data", "dir"), ("model", "cache"), ("model", "path"))
"""Keys of files that may have been moved together with the directory."""


def relocated(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The configuration in ``file``. If that is the run.yaml of its own directory, it is changed
    for this directory, instead of the one where it was written.

    A store, a cache or a model that is no longer at its old path, but is in the same place relative
    to the directory, is taken from there.
    """
    found, written = dict(config), config.get("run_dir")
    folder = Path(os.path.abspath(file)).parent
    if file.name != RUN_FILE or not (folder / RECORDS).is_dir() or not isinstance(written, str):
        return found
    old = Path(written)
    if not old.is_absolute() or old == folder or (old.exists() and old.samefile(folder)):
        return found
    depth = 0
    while depth < len(old.parts) - 1 and old.parts[-1 - depth :] == folder.parts[-1 - depth :]:
        depth += 1
    before, after = (Path(*path.parts[: len(path.parts) - depth]) for path in (old, folder))
    found["run_dir"] = str(folder)
    for group, key in PLACES:
        values = found.get(group)
        if not isinstance(values, Mapping):
            continue
        place = values.get(key)
        if isinstance(place, str) and Path(place).is_relative_to(before):
            now = after / Path(place).relative_to(before)
            if now.exists() and not Path(place).exists():
                found[group] = {**values, key: str(now)}
    return found
