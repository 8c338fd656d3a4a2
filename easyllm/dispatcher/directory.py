"""Whether a run may land in its directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easyllm import runfile
from easyllm.dispatcher import records
from easyllm.paths import RunPaths
from easyllm.spec.problems import ABSENT, Problem
from easyllm.spec.run import STAGES, RunSpec
from easyllm.spec.schema import flatten, write
from easyllm.stages import load


def problems(run: RunSpec) -> list[Problem]:
    """Why ``run`` must not go into the directory it names: another run's work lies there."""
    paths = RunPaths(run)
    if not paths.root.is_dir():
        return []
    if not paths.spec.exists():
        if any(not p.name.startswith(".") for p in paths.root.iterdir()):
            return [
                Problem(
                    "run_dir", run.run_dir, "holds files but no run",
                    "give a folder that is empty or does not exist",
                )
            ]  # fmt: skip
        return []
    differing = _differing(write(run), runfile.load_plain(paths.spec))
    spoiled = [key for key in differing if _was_used(run, key)]
    if not spoiled:
        return []
    shown = [f"{key} ({_short(old)} -> {_short(new)})" for key, (old, new) in differing.items()
             if key in spoiled]  # fmt: skip
    weights = all(key.startswith(("training.", "parallelism.")) for key in spoiled)
    instead = ", or training.resume=weights to begin with the weights it has" if weights else ""
    more = f" and {len(shown) - 6} more" if len(shown) > 6 else ""
    return [
        Problem(
            "run_dir", run.run_dir,
            f"holds another run, which differs in {', '.join(shown[:6])}{more}",
            f"give another run_dir, or none: a run finds its own{instead}",
        )
    ]  # fmt: skip


def _differing(new: Any, old: Any) -> dict[str, tuple[Any, Any]]:
    """(old, new) by dotted key."""
    flat_new, flat_old = flatten(new), flatten(old)
    keys = [*flat_new, *(key for key in flat_old if key not in flat_new)]
    pairs = {key: (flat_old.get(key, ABSENT), flat_new.get(key, ABSENT)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1] and key != "stages"}


def _was_used(run: RunSpec, key: str) -> bool:
    """Whether a stage that has left something behind read the key."""
    for name in STAGES:
        stage = load(name)
        record = records.read(run, stage)
        if record is None or not _left_something(run, name, record):
            continue
        read = any(key == prefix or key.startswith(prefix + ".") for prefix in stage.reads)
        if read and not stage.goes_on(run, key):
            return True
    return False


def _left_something(run: RunSpec, stage: str, record: Mapping[str, Any]) -> bool:
    if record.get("status") == records.DONE:
        return bool(record.get("outputs"))
    return stage == "train" and _has_entries(RunPaths(run).checkpoints)


def _has_entries(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _short(value: Any) -> str:
    text = "nothing" if value is ABSENT else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
