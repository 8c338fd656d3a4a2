"""The results of stages, and whether a stage has to run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from easyllm.files import fingerprint, read_record, write_record
from easyllm.paths import RunPaths
from easyllm.spec.defaults import default
from easyllm.spec.problems import ABSENT
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import flatten, write
from easyllm.stages.base import Stage

DONE, FAILED, INTERRUPTED = "done", "failed", "interrupted"


def read(run: RunSpec, stage: Stage) -> dict[str, Any] | None:
    """The stage's record; None where no readable record exists."""
    try:
        return read_record(RunPaths(run).record(stage.record(run)))
    except (OSError, ValueError):
        return None


def save(
    run: RunSpec,
    stage: Stage,
    status: str,
    started: datetime,
    metrics: Mapping[str, Any] | None = None,
    error: str | None = None,
) -> dict[str, Any]:
    """Write the stage's record; returns it."""
    record = {
        "stage": stage.name,
        "status": status,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 3),
        "metrics": dict(metrics or {}),
        "error": error,
        "log": str(RunPaths(run).logs(stage.name)),
        "spec": keys_read(run, stage),
        "inputs": _fingerprints(run, stage.inputs(run)),
        "outputs": _fingerprints(run, stage.outputs(run)) if status == DONE else {},
    }
    write_record(RunPaths(run).record(stage.record(run)), record)
    return record


def changed(run: RunSpec, stage: Stage, record: Mapping[str, Any] | None) -> str:
    """Why the stage has to run; empty when its results are still valid."""
    if record is None:
        return "not run yet"
    if record.get("status") != DONE:
        return f"was {record.get('status')}"
    if differences(run, stage, record):
        return "its keys have changed"
    if record.get("inputs") != _fingerprints(run, stage.inputs(run)):
        return "its inputs have changed"
    outputs = stage.outputs(run)
    if not outputs:
        return "runs every time"
    made = record.get("outputs") or {}
    root = RunPaths(run).root
    # an absolute path is not changed; files that a user has put beside it do not count
    there = all(fingerprint(root / name) == was for name, was in made.items())
    if not there or _name(run, outputs[0]) not in made or not stage.whole(run):
        return "its results are missing or have changed"
    return ""


def differences(
    run: RunSpec, stage: Stage, record: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """The keys read by the stage whose values differ, with the value of the record and that of the
    run.

    A key that is not in the record counts as its default there, because the field did not exist
    yet.
    """
    old, new = record.get("spec") or {}, keys_read(run, stage)
    found = {}
    for key in [*new, *(key for key in old if key not in new)]:
        # a damaged record without any key gives nothing
        before = old[key] if key in old else default(run, key) if old else ABSENT
        after = new.get(key, ABSENT)
        if before != after:
            found[key] = before, after
    return found


def keys_read(run: RunSpec, stage: Stage) -> dict[str, Any]:
    """The values of the spec that can change what the stage makes, by dotted key."""
    return {
        key: value
        for key, value in flatten(write(run)).items()
        if any(key == prefix or key.startswith(prefix + ".") for prefix in stage.reads)
    }


def _fingerprints(run: RunSpec, paths: Sequence[Path | str]) -> dict[str, str]:
    return {_name(run, path): fingerprint(path) for path in paths}


def _name(run: RunSpec, path: Path | str) -> str:
    """A path in the run's directory relative to it, so that the directory may be moved."""
    root = RunPaths(run).root
    if isinstance(path, Path) and path.is_relative_to(root):
        return str(path.relative_to(root))
    return str(path)
