"""Runs stages in order, each in its own processes; each one writes one record."""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from easyllm import runfile
from easyllm.dispatcher import directory, records, summary
from easyllm.dispatcher.lock import Occupied, held
from easyllm.dispatcher.pinning import pinned
from easyllm.errors import DONE, FAILED, INTERRUPTED, STOPPED, UserError
from easyllm.files import read_json
from easyllm.launchers import reports
from easyllm.launchers.local import Local
from easyllm.launchers.ranks import TERMINATED
from easyllm.paths import RunPaths
from easyllm.preflight.notes import notes
from easyllm.signals import Asked, stoppable
from easyllm.spec.problems import Problem, SpecError
from easyllm.spec.roles import Launch
from easyllm.spec.run import RunSpec
from easyllm.stages import load
from easyllm.stages.base import Stage


def dispatch(run: RunSpec) -> int:
    """Run the stages of a resolved spec in its directory; returns the exit status.

    Raises SpecError before anything is started if the directory belongs to another run.
    """
    run = pinned(run)
    paths = RunPaths(run)
    if found := [*directory.problems(run), *_missing(run)]:
        raise SpecError(found)
    try:
        with held(paths.root, ".serve.lock" if _only_reads(run) else ".lock"):
            file = _file(run)
            runfile.save(run, file)
            with stoppable():
                return run_on_machines(run, file)
    except Occupied as error:
        raise SpecError(
            [
                Problem(
                    "run_dir", run.run_dir, f"process {error.process} is running there",
                    "wait for it, or give another run_dir",
                )
            ]
        ) from None  # fmt: skip


def _file(run: RunSpec) -> Path:
    """The file from which the stages read the spec. A command that does not train leaves the
    ``run.yaml`` of a training unchanged."""
    paths = RunPaths(run)
    if "train" in run.stages or not paths.spec.exists():
        return paths.spec
    try:
        stages = runfile.load_plain(paths.spec).get("stages")
    except Exception:  # from YAML, OmegaConf or the disk: a damaged file is written again
        return paths.spec
    if not isinstance(stages, list) or "train" not in stages:
        return paths.spec
    return paths.serving if _only_reads(run) else paths.command


def _only_reads(run: RunSpec) -> bool:
    """Whether other commands may use the run's directory meanwhile, such as verify beside serve."""
    return all(load(name).only_reads for name in run.stages)


def _missing(run: RunSpec) -> list[Problem]:
    """Problems with files that the stages need and that no stage of the run makes."""
    found = []
    for name in run.stages:
        try:
            load(name).require(run)
        except UserError as error:
            what, remedy = error.parts
            found.append(Problem("stages", list(run.stages), f"{name}: {what}", remedy))
    return found


def run_on_machines(run: RunSpec, file: Path) -> int:
    """Run the stages, which read ``file``, with all machines of the run; returns the exit status of
    all."""
    status = FAILED
    try:
        with run.hardware.launcher.opened(run.hardware.nodes, lambda: status) as launcher:
            status = _stages(run, file, launcher)
    except Asked:  # while the machines joined
        summary.say("stopped")
        return STOPPED
    return status


def _stages(run: RunSpec, file: Path, launcher: Launch) -> int:
    begun = time.monotonic()
    made: list[tuple[dict[str, Any], bool]] = []
    status = DONE
    summary.say(f"{run.name} in {summary.shown(RunPaths(run).root)}")
    for note in notes(run):
        summary.say(f"note: {note}")
    try:
        for name in run.stages:
            stage = load(name)
            record = records.read(run, stage)
            reason = records.changed(run, stage, record)
            if record is not None and not reason:
                summary.say(f"{name}: up to date; skipped")
                if lost := stage.lost(run):
                    summary.say(f"{name}: {lost}")
                made.append((record, True))
                continue
            status, record = _run(run, file, stage, launcher)
            made.append((record, False))
            if status != DONE:
                break
    except (KeyboardInterrupt, Asked) as error:
        status = INTERRUPTED if isinstance(error, KeyboardInterrupt) else STOPPED
        summary.say("interrupted" if status == INTERRUPTED else "stopped")
    if status == DONE:
        summary.table(run, made, time.monotonic() - begun)
    elif status in (STOPPED, INTERRUPTED):
        summary.say(f"to resume, run the same command again, or: {summary.again(run, file)}")
    return status


def _run(run: RunSpec, file: Path, stage: Stage, launcher: Launch) -> tuple[int, dict[str, Any]]:
    """Run one stage with the launcher; returns its exit status and record."""
    paths = RunPaths(run)
    logs, started = paths.logs(stage.name), datetime.now(UTC)
    ranks = stage.ranks(run)
    for left in ("result.json", "stopped.json"):
        (logs / left).unlink(missing_ok=True)
    summary.say(f"{stage.name} …" if ranks == 1 else f"{stage.name} on {ranks} ranks …")
    command = [sys.executable, "-m", "easyllm.worker", str(file), stage.name]
    nodes = run.hardware.nodes if ranks > 1 else 1
    try:
        stage.prepare(run)
        code = (launcher if ranks > 1 else Local()).launch(
            command, ranks, logs, _environment(), nodes=nodes, files=[file]
        )
    except UserError as unreached:
        summary.failure(stage.name, str(unreached), None)
        return FAILED, records.save(run, stage, records.FAILED, started, error=str(unreached))
    except (KeyboardInterrupt, Asked) as stopped:
        why = "Ctrl-C" if isinstance(stopped, KeyboardInterrupt) else "stopped by a signal"
        if saved := _saved(logs):
            why = saved
            summary.say(f"{stage.name}: {saved}")
        records.save(run, stage, records.INTERRUPTED, started, error=why)
        raise
    if code == 0:
        metrics = read_json(logs / "result.json")
        (logs / "result.json").unlink()
        record = records.save(run, stage, records.DONE, started, metrics)
        summary.say(summary.line(record))
        return DONE, record
    if code in (STOPPED, TERMINATED):
        # without a message it was not the first rank that stopped
        why = _saved(logs) or "stopped by a signal; its progress is saved"
        summary.say(f"{stage.name}: {why}")
        return STOPPED, records.save(run, stage, records.INTERRUPTED, started, error=why)
    error, fixable = reports.cause(logs, code)
    summary.failure(stage.name, error, None if fixable else logs)
    return FAILED, records.save(run, stage, records.FAILED, started, error=error)


def _saved(logs: Path) -> str:
    """The first rank's message about what it saved before it stopped; empty where there is none."""
    try:
        return str(read_json(logs / "stopped.json")["message"])
    except (OSError, ValueError, KeyError):
        return ""


def _environment() -> dict[str, str]:
    """The environment in which ranks import the same easyllm as this process, from any folder."""
    package = str(Path(__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {"PYTHONPATH": os.pathsep.join([package, *filter(None, known)])}
