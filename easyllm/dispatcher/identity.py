"""How runs and stores are identified: names and addresses derived from the spec."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from easyllm.data.store.fingerprint import tokens_identity
from easyllm.errors import UserError
from easyllm.files import stable_hash
from easyllm.paths import RUNS, RunPaths
from easyllm.spec.problems import Problem, SpecError
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import hints, write
from easyllm.spec.types import Location


def resolved(run: RunSpec) -> RunSpec:
    """``run`` with every path given and absolute, so that it means the same from any folder."""
    run = _absolute(run)
    runs = Path.cwd() / RUNS
    if run.model.cache is None:
        run = replace(run, model=replace(run.model, cache=str(runs / "models")))
    if run.data.dir is None:
        store = runs / "stores" / store_address(run)
        run = replace(run, data=replace(run.data, dir=str(store)))
    if run.run_dir is None:
        run = replace(run, run_dir=str(runs / run_folder(run)))
    return run


def moved(before: RunSpec, after: RunSpec) -> RunSpec:
    """``after``, which is the resolved ``before`` with some keys changed, with its own paths.

    A path that was derived from the keys of ``before`` is derived again, beside the old one; a path
    that was given is kept. Both are named by what was typed: without ``model.revision``, where the
    run found that by itself. In a new directory the model that ``before`` trained generates the
    answers. Raises SpecError if that model is not exported.
    """
    assert before.data.dir and before.run_dir and after.data.dir and after.run_dir
    if after.data.dir == before.data.dir:
        store = _beside(before.data.dir, store_address, before, after)
        after = replace(after, data=replace(after.data, dir=store))
    if after.run_dir == before.run_dir:
        after = replace(after, run_dir=_beside(before.run_dir, run_folder, before, after))
    if after.run_dir != before.run_dir:
        asked, old = after.inference, RunPaths(before)
        uses = {"verify", "evaluate", "infer", "serve"} & set(
            after.stages
        ) and "export" not in after.stages
        another = asked.model or after.model.path != before.model.path
        if uses and not another and (old.export.exists() or old.checkpoints.exists()):
            after = replace(after, inference=replace(asked, model=_trained(before)))
    return after


def _beside(place: str, name: Callable[[RunSpec], str], before: RunSpec, after: RunSpec) -> str:
    """The path of ``after`` beside that of ``before``, if that was derived by ``name``; otherwise
    the same."""
    pairs = [(before, after)]
    if before.model.revision is not None:
        same = after.model.revision == before.model.revision
        pairs.append((_unpinned(before), _unpinned(after) if same else after))
    for then, now in pairs:
        if Path(place).name == name(then):
            return str(Path(place).with_name(name(now)))
    return place


def _unpinned(run: RunSpec) -> RunSpec:
    """``run`` as it was typed, where it found its ``model.revision`` by itself."""
    return replace(run, model=replace(run.model, revision=None))


def _trained(run: RunSpec) -> str:
    """The model that a run has made. Raises SpecError if it is not exported."""
    from easyllm.inference.prompts import model_path  # not needed by every command

    try:
        return model_path(run)
    except UserError as error:
        what, remedy = error.parts
        raise SpecError([Problem("stages", list(run.stages), what, remedy)]) from None


def run_folder(run: RunSpec) -> str:
    """``<name>-<hash>``, the default folder of a run.

    Paths, the engines of the data stages and of the tokenizer, workers and memory, how ranks are
    started, the chosen stages, and how the model is exported, evaluated and served do not make
    another run.
    The content of the sources does.
    """
    plain = write(run)
    for key in ("run_dir", "stages", "export", "verify", "evaluation", "serving"):
        del plain[key]
    address = store_address(run)
    derived = plain["data"]["dir"] is None or Path(plain["data"]["dir"]).name == address
    for key in ("cache", "encoder", "engine", "workers", "memory_gb") + (("dir",) * derived):
        del plain["data"][key]
    if run.model.revision is None:
        del plain["model"]["revision"]  # so that the names of older runs do not change
    del plain["model"]["cache"], plain["training"]["resume"]
    del plain["hardware"]["launcher"], plain["hardware"]["timeout_s"]
    return f"{run.name}-{stable_hash([plain, address], 8)}"


def store_address(run: RunSpec) -> str:
    """A hash of everything that decides what the token store holds, including the sources'
    files."""
    revision = run.model.revision if run.data.tokenizer.of_model(run) else None
    given = [revision] if revision else []  # so that the names of older stores do not change
    return stable_hash([tokens_identity(run), run.data.partitions, run.seed, *given], 12)


def _absolute(part: Any) -> Any:
    """``part`` with relative locations made absolute."""
    if isinstance(part, Mapping):
        return {key: _absolute(value) for key, value in part.items()}
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return part
    changes = {}
    for name, hint in hints(type(part)).items():
        value = getattr(part, name, None)
        mark = _mark(hint)
        changed = _absolute(value) if mark is None else _located(value, mark)
        if changed != value:
            changes[name] = changed
    return replace(part, **changes) if changes else part


def _mark(hint: Any) -> Location | None:
    """The mark of a location in a type such as ``Place | None``."""
    for mark in getattr(hint, "__metadata__", ()):
        if isinstance(mark, Location):
            return mark
    return next(filter(None, map(_mark, typing.get_args(hint))), None)


def _located(value: Any, mark: Location) -> Any:
    if isinstance(value, tuple):
        return tuple(_located(v, mark) for v in value)
    if not isinstance(value, str) or "://" in value:
        return value
    absolute = Path(os.path.abspath(Path(value).expanduser()))  # a link is not resolved
    return value if mark.or_hub and not absolute.exists() else str(absolute)
