"""A rank's entry: ``python -m easyllm.worker RUN_DIR/run.yaml STAGE``.

Launchers start it with RANK, WORLD_SIZE and LOCAL_RANK set. It does not use Hydra. Rank 0 writes
the stage's result, or why it stopped, beside its log, and every rank writes why it failed; the
dispatcher records that.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import traceback
from pathlib import Path

from easyllm import runfile
from easyllm.errors import FAILED, STOPPED, UserError
from easyllm.files import full_disk, write_json
from easyllm.launchers import reports
from easyllm.launchers.reports import Report
from easyllm.paths import RunPaths
from easyllm.stages import load
from easyllm.stages.base import Interrupted, Rank


def main(file: Path, stage: str) -> int:
    _die_with_parent()
    faulthandler.enable()  # the launcher asks a hung rank for its stacks with SIGABRT
    run = runfile.load(file)
    rank = Rank(
        index=int(os.environ.get("RANK", 0)),
        count=int(os.environ.get("WORLD_SIZE", 1)),
        local_index=int(os.environ.get("LOCAL_RANK", 0)),
        local_count=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        reports=Path(os.environ.get(reports.FOLDER, RunPaths(run).logs(stage))),
    )
    try:
        metrics = load(stage).work(run, rank)
        if rank.first:
            write_json(rank.reports / "result.json", dict(metrics))
    except Interrupted as stopped:
        if rank.first:
            write_json(rank.reports / "stopped.json", {"message": str(stopped)})
        return STOPPED  # it has saved, because of a signal or because its time was used up
    except UserError as error:
        _leave(rank, str(error), fixable=True)
        return FAILED
    except Exception as error:
        if full := full_disk(error):
            _leave(rank, full, fixable=True)
            return FAILED
        last = traceback.format_exception_only(error)[-1].strip()
        if reports.kind_of(last) == "lost_peer":
            # the cause is in another rank, whose report must be seen first
            print(f"rank {rank.index} has lost another rank: {last}", file=sys.stderr)
        else:
            traceback.print_exc()
        _leave(rank, last)
        return FAILED
    return 0


def _leave(rank: Rank, message: str, fixable: bool = False) -> None:
    kind = reports.kind_of(message) if not fixable else "error"
    try:
        reports.leave(rank.reports, Report(rank.index, message, kind, fixable))
    except OSError as error:
        print(f"{message}\nno report could be written: {error}", file=sys.stderr)


def _die_with_parent() -> None:
    """Make Linux kill this rank when its launcher is killed without a chance to end it."""
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


if __name__ == "__main__":
    status = main(Path(sys.argv[1]), sys.argv[2])
    sys.stdout.flush()
    sys.stderr.flush()
    # Engines leave threads and process groups behind that can make an ordinary exit hang.
    os._exit(status)
