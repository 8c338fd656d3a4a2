"""Ranks as processes of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from easyllm.progress import ON_TERMINAL
from easyllm.spec.problems import Problem
from easyllm.spec.roles import Launcher
from easyllm.spec.run import RunSpec
from easyllm.spec.types import NonNegativeFloat

SAVED = 75
"""Exit status of a rank that was asked to stop and has saved (EX_TEMPFAIL)."""

POLL = 0.05
"""Seconds between looks at the ranks."""

SETTLE = 0.3
"""Seconds for the other ranks to end after one has failed."""


@dataclass(frozen=True, kw_only=True)
class Local(Launcher):
    """Starts every rank on this machine, each in a session of its own.

    SIGTERM to this process is passed on to the ranks, which save and end with status 75.
    Ctrl-C ends them and raises KeyboardInterrupt.
    """

    grace: NonNegativeFloat = 5.0
    """Seconds between SIGTERM and SIGKILL for ranks that must end: another one has
    failed, or the user pressed Ctrl-C."""

    def problems(self, key: str, run: RunSpec) -> Iterator[Problem]:
        if run.hardware.nodes > 1 and "train" in run.stages:
            yield Problem(
                "hardware.nodes",
                run.hardware.nodes,
                f"{key} starts ranks on this machine only",
                f"name a launcher that reaches all nodes in {key}._target_, or choose "
                "hardware of one node; stages=[] checks the spec for the nodes it names",
                also=(key,),
            )

    def launch(self, command: Sequence[str], ranks: int, logs: Path, env: Mapping[str, str]) -> int:
        logs.mkdir(parents=True, exist_ok=True)
        for old in logs.glob("rank-*.log"):
            old.unlink()
        port = str(_free_port())
        started: list[_Rank] = []
        with _sigterm() as asked:
            try:
                for index in range(ranks):
                    own = _environment(index, ranks, port, env)
                    # Started from this thread: a rank that ties its life to its parent's
                    # (PR_SET_PDEATHSIG) dies with the thread that forked it.
                    started.append(_Rank(command, own, logs / f"rank-{index}.log", index == 0))
                return self._watch(started, asked)
            finally:
                self._end(started)

    def _watch(self, ranks: list[_Rank], asked: threading.Event) -> int:
        """Wait until all ranks have ended, or one has failed; the status of the launch."""
        saved = False
        while any(rank.status is None for rank in ranks):
            if asked.is_set():
                asked.clear()
                for rank in ranks:
                    rank.send(signal.SIGTERM)
            for rank in ranks:
                status = rank.look()
                if status not in (None, 0, SAVED):
                    return _cause(ranks, int(status))
                saved = saved or status == SAVED
            time.sleep(POLL)
        return SAVED if saved else 0

    def _end(self, ranks: list[_Rank]) -> None:
        """End the ranks that still run; a Ctrl-C meanwhile cuts the grace short."""
        try:
            deadline = time.monotonic() + self.grace
            for rank in ranks:
                rank.send(signal.SIGTERM)
            while any(rank.look() is None for rank in ranks) and time.monotonic() < deadline:
                time.sleep(POLL)
        finally:
            for rank in ranks:
                rank.close()


class _Rank:
    """One rank's process group and its log."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path, shown: bool):
        self.status: int | None = None
        self.tee: threading.Thread | None = None
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if shown else file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if shown:
            assert self.process.stdout is not None
            self.tee = threading.Thread(target=_tee, args=(self.process.stdout, log), daemon=True)
            self.tee.start()

    def look(self) -> int | None:
        """The exit status, 128 + signal for a killed rank; None while it runs."""
        if self.status is None:
            # The group goes before its leader is reaped, while its number cannot be
            # another's: what a rank leaves behind would hold its output open.
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
        """Kill what still runs and wait for the last of the output."""
        if self.status is None:
            self._kill()
            self.process.wait()
            self.status = 128 + signal.SIGKILL
        if self.tee is not None:
            self.tee.join(timeout=5)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def _cause(ranks: list[_Rank], status: int) -> int:
    """The status that tells most: a rank that the machine killed takes the others, which
    lose their connection to it, along within moments and may be seen first."""
    time.sleep(SETTLE)
    killed = 128 + signal.SIGKILL
    return killed if killed in [rank.look() for rank in ranks] else status


def _tee(output: IO[bytes], log: Path) -> None:
    """Copy a rank's output to its log and to the terminal as it comes, byte for byte."""
    terminal: Any = getattr(sys.stderr, "buffer", None)
    with output, log.open("wb") as file:
        while chunk := os.read(output.fileno(), 1 << 16):
            file.write(chunk)
            file.flush()
            if terminal is not None:
                try:
                    terminal.write(chunk)
                    terminal.flush()
                except (OSError, ValueError):  # the terminal has gone, the log stays
                    terminal = None


@contextlib.contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets while the block runs."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # Python allows handlers in the main thread only
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _environment(index: int, ranks: int, port: str, env: Mapping[str, str]) -> dict[str, str]:
    own = {
        **os.environ,
        **env,
        "RANK": str(index),
        "LOCAL_RANK": str(index),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "LOCAL_SIZE": str(ranks),  # read by DeepSpeed's CPU collectives
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "PYTHONUNBUFFERED": "1",
    }
    if ranks > 1:
        own.setdefault("OMP_NUM_THREADS", "1")
    # Threads that wait by spinning slow each other down 5 to 10 times on a busy machine.
    own.setdefault("OMP_WAIT_POLICY", "passive")
    if sys.stderr.isatty():
        own[ON_TERMINAL] = "1"
    return own


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
