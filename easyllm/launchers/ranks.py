"""Ranks of one launch: started, watched until all have ended, and ended together."""

from __future__ import annotations

import abc
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from easyllm.errors import HUNG, STOPPED
from easyllm.launchers import reports
from easyllm.launchers.reports import Report
from easyllm.launchers.stopping import ctrl_c, stop_signals
from easyllm.progress import ON_TERMINAL, columns

TERMINATED = 128 + signal.SIGTERM

LOST = 255
"""Status of a rank whose machine is out of reach."""

FEW_THREADS = "EASYLLM_FEW_THREADS"
"""Variable that is set where a rank has one thread because no number was given."""

POLL = 0.05
"""Seconds between looks at the ranks."""

SETTLE = 0.3
"""Seconds for the other ranks to end after one has failed."""

CAUSE = 3.0
"""Seconds to wait for the cause where only the loss of another rank is known."""

HURRY = 2.0
"""Seconds for ranks to end after a second Ctrl-C."""

STACKS = 5.0
"""Seconds for all ranks to notice a hang, and then for the stacks of the ranks that did not."""

Output = Path | Callable[[bytes], None]


class Rank(abc.ABC):
    """One rank, on this or on another machine."""

    index: int
    node: str
    """Its machine's name; empty where there is one machine only."""

    @abc.abstractmethod
    def look(self) -> int | None:
        """The exit status, 128 + signal for a killed rank, LOST; None while it runs."""

    @abc.abstractmethod
    def send(self, number: int) -> None:
        """Send a signal to the rank and the processes that it has started."""

    @abc.abstractmethod
    def close(self) -> None:
        """Kill what still runs and wait for the last of the output."""


@dataclass(frozen=True)
class Position:
    """A rank's place among all."""

    rank: int
    ranks: int
    local_rank: int
    local_ranks: int
    master: str
    """Address of the first machine, to which all ranks connect."""
    port: int
    node: str = ""

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """``base`` and the variables with which a rank finds the others."""
        own = {
            **base,
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "WORLD_SIZE": str(self.ranks),
            "LOCAL_WORLD_SIZE": str(self.local_ranks),
            "LOCAL_SIZE": str(self.local_ranks),  # read by DeepSpeed's CPU collectives
            "MASTER_ADDR": self.master,
            "MASTER_PORT": str(self.port),
            "PYTHONUNBUFFERED": "1",
        }
        if self.node:
            own[reports.NODE] = self.node
        if self.ranks > 1 and "OMP_NUM_THREADS" not in own:
            own["OMP_NUM_THREADS"] = own[FEW_THREADS] = "1"
        # Threads that wait by spinning slow each other down by 5 to 10 times on a busy machine.
        own.setdefault("OMP_WAIT_POLICY", "passive")
        # also for the bars of other libraries, which see a pipe and not the terminal's width
        own.setdefault("TQDM_NCOLS", str(columns() - 1))
        if sys.stderr.isatty():
            own[ON_TERMINAL] = str(columns())
        return own


class Process(Rank):
    """A rank on this machine, in its own process group.

    It must be made in the main thread: a rank that is to end with its parent (PR_SET_PDEATHSIG) is
    killed when the thread that forked it ends.
    """

    def __init__(
        self, index: int, command: Sequence[str], env: Mapping[str, str], output: Output,
        node: str = "",
    ):  # fmt: skip
        self.index, self.node = index, node
        self.status: int | None = None
        self.reader: threading.Thread | None = None
        with contextlib.ExitStack() as stack:
            to: Any = subprocess.PIPE
            if isinstance(output, Path):
                to = stack.enter_context(output.open("wb"))
            self.process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=to,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if not isinstance(output, Path):
            assert self.process.stdout is not None
            arguments = (self.process.stdout, output)
            self.reader = threading.Thread(target=_read, args=arguments, daemon=True)
            self.reader.start()

    def look(self) -> int | None:
        if self.status is None:
            # The group is killed before its leader is reaped, while its number cannot be reused.
            # Processes that a rank leaves behind would keep its output open.
            ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, self.process.pid, ended) is not None:
                self._kill()
                code = self.process.wait()
                self.status = code if code >= 0 else 128 - code
        return self.status

    def send(self, number: int) -> None:
        if self.look() is None:
            os.killpg(self.process.pid, number)

    def close(self) -> None:
        if self.status is None:
            self._kill()
            self.process.wait()
            self.status = 128 + signal.SIGKILL
        if self.reader is not None:
            self.reader.join(timeout=5)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def _read(stream: IO[bytes], take: Callable[[bytes], None]) -> None:
    with stream:
        while chunk := os.read(stream.fileno(), 1 << 16):
            take(chunk)


class Tee:
    """Copies output to a log and to the terminal as it arrives, byte for byte."""

    def __init__(self, log: Path, shown: bool):
        self.log, self.file = log, log.open("wb", buffering=0)
        self.written = True
        self.terminal: Any = getattr(sys.stderr, "buffer", None) if shown else None

    def __call__(self, chunk: bytes) -> None:
        if self.written:
            try:
                self.file.write(chunk)
            except OSError as error:  # the disk is full, but the stage may still succeed
                self.written = False
                print(f"{self.log} ends here: {error}", file=sys.stderr, flush=True)
        if self.terminal is not None:
            try:
                self.terminal.write(chunk)
                self.terminal.flush()
            except (OSError, ValueError):  # the terminal is closed, but the log continues
                self.terminal = None


def watch(starting: Iterable[Rank], logs: Path, grace: float) -> int:
    """Run ranks, which start as they are taken from the iterable, until all have ended or one has
    failed.

    SIGTERM, SIGUSR1 and the first Ctrl-C reach the ranks as SIGTERM, and they may save for as long
    as that takes; a second Ctrl-C ends them at once. When one rank fails, the others get SIGTERM,
    and ``grace`` seconds later they are killed. Reports are in ``logs``. Returns 0, STOPPED, or the
    status of the rank that failed first. Raises KeyboardInterrupt once all have ended after a
    Ctrl-C.
    """
    ranks: list[Rank] = []
    with stop_signals() as asked, ctrl_c(asked) as pressed:
        try:
            ranks.extend(starting)
            status = _until_ended(ranks, logs, asked)
        except KeyboardInterrupt:
            grace = min(grace, HURRY)
            raise
        finally:
            _end(ranks, grace)
    if pressed.is_set() and status in (0, STOPPED, TERMINATED):
        raise KeyboardInterrupt
    return status


def _until_ended(ranks: list[Rank], logs: Path, asked: threading.Event) -> int:
    terminated = False
    while any(rank.look() is None for rank in ranks):
        if asked.is_set():
            asked.clear()
            terminated = True
            for rank in ranks:
                rank.send(signal.SIGTERM)
        if (failed := _failed(ranks)) is not None:
            return _cause(ranks, logs, failed, terminated)
        time.sleep(POLL)
    if (failed := _failed(ranks)) is not None:
        return _cause(ranks, logs, failed, terminated)
    saved = any(rank.look() == STOPPED for rank in ranks)
    return STOPPED if saved else 0


def _failed(ranks: list[Rank]) -> int | None:
    """The status of a rank that has failed."""
    return next((s for r in ranks if (s := r.look()) not in (None, 0, STOPPED)), None)


def _cause(ranks: list[Rank], logs: Path, status: int, terminated: bool) -> int:
    """The status of the rank that is the cause. After a rank is killed, the others lose their
    connection to it and soon fail too, and they may be seen first. A rank that was ``terminated``
    before it handled the signal ends by it."""
    _await(ranks, SETTLE)
    if terminated and TERMINATED in [rank.look() for rank in ranks]:
        return TERMINATED
    if HUNG in [rank.look() for rank in ranks]:
        _stacks(ranks, logs)
        return HUNG
    deadline = time.monotonic() + CAUSE
    while not _reported(ranks, logs) and time.monotonic() < deadline:
        if not _await(ranks, POLL):
            _reported(ranks, logs)
            break
    if found := reports.left(logs):
        by_index = {rank.index: rank.look() for rank in ranks}
        return by_index.get(found[0].rank) or status
    return status


def _reported(ranks: list[Rank], logs: Path) -> bool:
    """Whether the cause is known; writes the reports of ranks that could not write them."""
    for rank in ranks:
        code = rank.look()
        if code == TERMINATED:
            return True  # the sender of the signal knows the cause
        if code not in (None, 0, STOPPED):
            reports.leave(logs, reports.silent(rank.index, rank.node, int(code or 0)))
    return any(report.kind in reports.CAUSES for report in reports.left(logs))


def _stacks(ranks: list[Rank], logs: Path) -> None:
    """Make every rank write its stacks into its log, including ranks that did not notice the
    hang."""
    _await(ranks, STACKS)
    deaf = [rank for rank in ranks if rank.look() is None]
    for rank in deaf:
        rank.send(signal.SIGABRT)
    _await(ranks, STACKS / 2)
    for rank in deaf:
        said = "did not answer: it is stopped, or busy in code that does not return to Python"
        reports.leave(logs, Report(rank.index, said, "hung", node=rank.node))


def _await(ranks: list[Rank], seconds: float) -> bool:
    """Wait for all ranks to end; returns whether any still runs."""
    deadline = time.monotonic() + seconds
    while (runs := any(rank.look() is None for rank in ranks)) and time.monotonic() < deadline:
        time.sleep(POLL)
    return runs


def _end(ranks: list[Rank], grace: float) -> None:
    """End the ranks that still run; a Ctrl-C during that time ends the grace period."""
    try:
        for rank in ranks:
            rank.send(signal.SIGTERM)
        _await(ranks, grace)
    finally:
        for rank in ranks:
            rank.close()


def fresh(logs: Path) -> None:
    """Prepare ``logs`` for another launch."""
    logs.mkdir(parents=True, exist_ok=True)
    for old in logs.glob("rank-*.log"):
        old.unlink()
    reports.clear(logs)


def free_port(address: str = "127.0.0.1") -> int:
    """A port of this machine on which no process listens."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
