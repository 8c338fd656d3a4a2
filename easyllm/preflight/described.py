"""Checks that the files at ``model.path`` are those of the model that the spec describes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from easyllm.errors import UserError
from easyllm.models import source
from easyllm.models.gguf import header
from easyllm.spec.problems import Problem
from easyllm.spec.run import RunSpec

DESCRIPTIVE = frozenset(
    "architectures auto_map bos_token_id dtype eos_token_id model_type pad_token_id "  # noqa: SIM905
    "rope_parameters rope_scaling torch_dtype transformers_version use_cache".split()
)
"""Keys that change no dimension, or that are written in more than one way."""
ARCHITECTURES = {"llama": ("llama", "mistral")}
"""The ``model_type`` values that a GGUF file's architecture can mean, where the name differs."""
REMEDY = (
    "give model=from_path, which takes the model as its own files describe it, or the model group "
    "that belongs to it"
)


def problems(run: RunSpec) -> Iterator[Problem]:
    """Problems where a model has another type or other dimensions than ``model.config`` and
    ``model.family`` give. Reads ``config.json`` or the header of a GGUF file; a hub id is compared
    when it is downloaded."""
    path, family = run.model.path, run.model.family
    if not path:
        return
    stated = run.model.config.get("model_type") or (family.model_type if family else None)
    key = "model.config.model_type" if "model_type" in run.model.config else "model.family"
    try:
        place = source.local(path)
        published = source.local_config(path)
        architecture = _architecture(place)
    except UserError:  # reported with the path
        return
    if architecture:
        types = ARCHITECTURES.get(architecture, (architecture,))
        if stated and stated not in types:
            message = f"its general.architecture is {architecture}, and {key} is {stated}"
            yield _problem(path, message, key)
    if published is None:
        return
    found = published.get("model_type")
    if found and stated and found != stated:
        message = f"its config.json says model_type {found}, and {key} is {stated}"
        yield _problem(path, message, key)
    elif other := list(_other(run, published)):
        yield _problem(path, "its config.json says " + "; ".join(other), "model.config")


def _problem(path: str, message: str, key: str) -> Problem:
    remedy = "leave model.family out" if key == "model.family" else REMEDY
    return Problem("model.path", path, message, remedy, also=(key,))


def _other(run: RunSpec, published: dict[str, Any]) -> Iterator[str]:
    """The keys of ``model.config`` that have another value in the published configuration."""
    for key, ours in run.model.config.items():
        theirs = published.get(key)
        if key in DESCRIPTIVE or key in run.model.overrides or None in (ours, theirs):
            continue
        if not _same(ours, theirs):
            yield f"{key} {json.dumps(theirs)}, model.config.{key} {json.dumps(ours)}"


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return math.isclose(ours, theirs, rel_tol=1e-6)
    return bool(ours == theirs)


def _architecture(place: Path | None) -> str | None:
    if place is None or place.suffix != ".gguf" or not place.is_file():
        return None
    return header.read(place, arrays=False).architecture
