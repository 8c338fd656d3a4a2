"""Outlines of configurations, kept in the user's cache.

transformers has to build a model to know its layers, on the meta device. A process of its own does
that, once for a configuration, so that checking a spec does not import torch.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from easyllm import files
from easyllm.models.decoders.outline import Outline, read


def outline(config: Mapping[str, Any]) -> Outline:
    """The outline of the model that ``config``, a map as in ``config.json``, describes; kept in the
    user's cache."""
    return cached(json.dumps(config, sort_keys=True, default=str))


@functools.cache
def cached(config: str) -> Outline:
    file = _folder() / f"{files.stable_hash([*_made_by(), config])}.json"
    try:
        return read(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        pass
    found = in_process(config) if "torch" in sys.modules else in_another_process(config)
    if isinstance(found, str):  # it may have been out of memory, so it is asked again next time
        return Outline(problem=f"transformers cannot build this model: {found}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(file, found, durable=False)
    except OSError:
        pass  # it is computed again
    return read(found)


@functools.cache
def _made_by() -> list[str]:
    """What an outline depends on besides its configuration. An outline of other code of this room
    would hide what that code does."""
    code = hashlib.sha256()
    for source in sorted(Path(__file__).parents[1].rglob("*.py")):
        code.update(source.read_bytes())
    return [code.hexdigest(), version("transformers"), version("torch")]


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "easyllm" / "outlines"


def in_process(config: str) -> dict[str, Any]:
    from easyllm.models.decoders.describe import described

    found: dict[str, Any] = json.loads(json.dumps(described(json.loads(config)), default=str))
    return found


def in_another_process(config: str) -> dict[str, Any] | str:
    """The outline, or the last words of the process that was to make it."""
    command = [sys.executable, "-m", "easyllm.models.decoders.describe"]
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        command, input=config, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
