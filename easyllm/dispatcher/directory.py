"""Whether a run may use its directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easyllm.dispatcher import records
from easyllm.paths import RunPaths
from easyllm.spec.problems import ABSENT, Problem
from easyllm.spec.run import STAGES, RunSpec
from easyllm.stages import load

OUTPUTS = ("export.output", "inference.output")
"""Keys by which a run can have several results of one kind."""

ENDS = ("export", "evaluate", "infer")
"""Stages whose keys no later stage depends on."""


def problems(run: RunSpec) -> list[Problem]:
    """Why ``run`` must not use the directory that it names: it holds another run's work."""
    paths = RunPaths(run)
    if not paths.root.is_dir():
        return []
    if not paths.spec.exists() and not paths.records.is_dir():
        if any(not p.name.startswith(".") for p in paths.root.iterdir()):
            return [
                Problem(
                    "run_dir", run.run_dir, "holds files but no run",
                    "give a folder that is empty or does not exist",
                )
            ]  # fmt: skip
        return []
    spoiled = _spoiled(run)
    if not spoiled:
        return []
    shown = [f"{key} ({_short(old)} -> {_short(new)})" for key, (old, new) in spoiled.items()]
    weights = all(key.startswith(("training.", "parallelism.")) for key in spoiled)
    instead = ", or training.resume=weights to begin with the weights it has" if weights else ""
    remedy = f"give another run_dir, or none: a run finds its own{instead}"
    for output in OUTPUTS:
        group = output.partition(".")[0]
        if all(key.startswith(f"{group}.") for key in spoiled):
            remedy = f"give {output}=<another place> to keep both, or another run_dir"
    more = f" and {len(shown) - 6} more" if len(shown) > 6 else ""
    return [
        Problem(
            "run_dir", run.run_dir,
            f"holds another run, which differs in {', '.join(shown[:6])}{more}",
            remedy,
        )
    ]  # fmt: skip


def _spoiled(run: RunSpec) -> dict[str, tuple[Any, Any]]:
    """Keys, with their old and new values, that were read by a stage whose results are in the
    directory and which cannot continue from them."""
    found = {}
    for name in STAGES:
        if name in ENDS and name not in run.stages:
            continue  # it already has its result
        stage = load(name)
        record = records.read(run, stage)
        if record is None or not left_something(run, name, record):
            continue
        for key, pair in records.differences(run, stage, record).items():
            if not stage.may_change(run, key):
                found[key] = pair
    return found


def left_something(run: RunSpec, stage: str, record: Mapping[str, Any]) -> bool:
    """Whether a stage with this record has made something that is in the run's directory."""
    if record.get("status") == records.DONE and record.get("outputs"):
        return True
    return stage == "train" and _has_entries(RunPaths(run).checkpoints)


def _has_entries(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _short(value: Any) -> str:
    text = "nothing" if value is ABSENT else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
