"""Chooses the commit of a model on the hub that a run uses, once, before anything is started."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from easyllm import runfile
from easyllm.dispatcher import directory, records, summary
from easyllm.errors import UserError, WrongValue
from easyllm.models import source
from easyllm.paths import RunPaths
from easyllm.spec.problems import Problem, SpecError
from easyllm.spec.run import STAGES, RunSpec
from easyllm.spec.schema import flatten
from easyllm.stages import load


def pinned(run: RunSpec) -> RunSpec:
    """``run`` with the commit of its model, where ``model.path`` is on the hub and no revision is
    given.

    A run that has started keeps its first commit. Otherwise it takes the commit of the hub's main
    branch or, if the hub does not answer, the one in the hub's cache on this machine. A run whose
    stages do not use the model does not ask the hub. Raises SpecError if there is no such revision,
    or if none can be found.
    """
    path, revision = run.model.path, run.model.revision
    if path is None or _is_local(path):
        return run
    if revision is None:
        begun, revision = _begun_with(run, path)
        if begun:
            return _at(run, revision)
    if not any(load(name).fetches(run) for name in run.stages):
        return run
    if revision is not None and source.snapshot(path, revision) is not None:
        return run  # given, and already downloaded
    try:
        found = source.commit(path, revision)
    except WrongValue as error:
        raise SpecError([Problem(error.key, error.value, error.what, error.remedy)]) from None
    except UserError as error:
        what, remedy = error.parts
        message = what.removeprefix(f"{path}: ")
        raise SpecError([Problem("model.path", path, message, remedy)]) from None
    if revision is not None:
        return run  # kept as it was typed
    summary.say(f"model.revision: {path} is at {found}")
    return _at(run, found)


def _is_local(path: str) -> bool:
    try:
        return source.local(path) is not None
    except UserError:  # reported when it is read
        return True


def _at(run: RunSpec, revision: str | None) -> RunSpec:
    return replace(run, model=replace(run.model, revision=revision))


def _begun_with(run: RunSpec, path: str) -> tuple[bool, str | None]:
    """Whether the directory already holds a run with this model, and its revision: None where it is
    older than revisions, or began without the model."""
    for keys in _reported(run):
        if keys.get("model.path") == path and keys.get("model.revision"):
            return True, str(keys["model.revision"])
    for name in STAGES:
        stage = load(name)
        record = records.read(run, stage)
        if record and stage.fetches(run) and directory.left_something(run, name, record):
            return True, None
    return False, None


def _reported(run: RunSpec) -> Iterator[Mapping[str, Any]]:
    """The keys of the run in the directory, from its run.yaml, or from the records of its stages if
    that is missing."""
    with contextlib.suppress(
        Exception
    ):  # from YAML, OmegaConf or the disk: a damaged file gives nothing
        yield flatten(runfile.load_plain(RunPaths(run).spec))
    for name in STAGES:
        record = records.read(run, load(name)) or {}
        if isinstance(keys := record.get("spec"), Mapping):
            yield keys
