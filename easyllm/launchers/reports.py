"""The reports of ranks that fail, and which of them is the cause.

A rank that fails writes ``error-<rank>.json``. The launcher writes it for a rank that could not,
because it was killed or its machine was lost. A rank often fails only because another has ended:
such reports are consequences, in whatever order they are written.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from easyllm.files import read_json, write_json

FOLDER = "EASYLLM_REPORTS"
"""Variable that names the folder for reports; if it is not set, a rank's logs folder."""

NODE = "EASYLLM_NODE"
"""Variable that names the machine a rank runs on, as the launcher knows it."""

Kind = Literal["error", "killed", "hung", "ended", "aborted", "lost_peer"]
ORDER: dict[Kind, int] = {
    "error": 0, "killed": 0, "hung": 1, "ended": 2, "aborted": 3, "lost_peer": 4
}  # fmt: skip
"""Causes before consequences. A rank that ended without a report may be either. NCCL aborts a rank
that has lost another."""

CAUSES = ("error", "killed", "hung")

LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Socket closed",
    "remote process exited",
    "ncclRemoteError",
    "Timed out waiting",
    "failed to connect",
)
"""Error texts of gloo, NCCL and torch's store for a lost connection."""


@dataclass(frozen=True)
class Report:
    """Why one rank failed."""

    rank: int
    message: str
    kind: Kind = "error"
    fixable: bool = False
    """Whether the message is complete, so that the user need not read a log."""
    node: str = ""
    waiting: bool = False
    """For a hung rank, whether it was waiting for others."""


def kind_of(message: str) -> Kind:
    """The kind of an error: whether it is the loss of another rank."""
    return "lost_peer" if any(words in message for words in LOST_PEER) else "error"


def file(folder: Path, rank: int) -> Path:
    return folder / f"error-{rank}.json"


def leave(folder: Path, report: Report) -> None:
    """Write the report of a rank, unless it has one already."""
    target = file(folder, report.rank)
    if not target.exists():
        named = report.node or os.environ.get(NODE, "")
        write_json(target, {**asdict(report), "node": named})


def left(folder: Path) -> list[Report]:
    """The reports of a launch, causes first, then by the time they were written here."""
    files = sorted(folder.glob("error-*.json"), key=lambda path: path.stat().st_mtime_ns)
    reports = [Report(**read_json(path)) for path in files]
    return sorted(reports, key=lambda report: ORDER[report.kind])


def clear(folder: Path) -> None:
    for path in folder.glob("error-*.json"):
        path.unlink()


def silent(rank: int, node: str, status: int) -> Report:
    """The report of a rank that ended without one."""
    number = status - 128
    if number <= 0 or status > 128 + signal.NSIG:
        return Report(rank, f"ended with status {status}", "ended", node=node)
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    message = f"was killed by {name}"
    if number == signal.SIGKILL:
        message += "; the machine may have run out of memory"
    return Report(rank, message, "aborted" if number == signal.SIGABRT else "killed", node=node)


def cause(folder: Path, code: int) -> tuple[str, bool]:
    """Why a launch failed with ``code``, in a sentence, and whether that is all the user needs."""
    reports = left(folder)
    if not reports:
        return f"a rank {silent(0, '', code).message}", False
    first = reports[0]
    if first.kind == "hung":
        return _hang([report for report in reports if report.kind == "hung"]), False
    alone = len(list(folder.glob("rank-*.log"))) <= 1
    ended = first.kind in ("killed", "ended", "aborted")
    if first.fixable or (alone and not ended):
        return first.message, first.fixable
    named = "a rank" if alone else _named(first)
    return f"{named}{' ' if ended else ': '}{first.message}", False


def _hang(reports: Iterable[Report]) -> str:
    """The ranks that did not arrive where the others waited, if that can be known."""
    reports = sorted(reports, key=lambda report: report.rank)
    absent = [report for report in reports if not report.waiting]
    waiting = [report for report in reports if report.waiting]
    message = "; ".join(f"{_named(report)} {report.message}" for report in absent or waiting)
    if absent and waiting:
        others = ", ".join(str(report.rank) for report in waiting)
        message += f"; waiting for it: {'ranks' if len(waiting) > 1 else 'rank'} {others}"
    elif waiting:
        message = f"all ranks wait for each other: {message}"
    return f"{message}. The stacks of all ranks are at the end of their logs"


def _named(report: Report) -> str:
    return f"rank {report.rank}" + (f" on {report.node}" if report.node else "")
