"""Ends a rank that takes too long, and writes its stacks into its log."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from easyllm.errors import HUNG
from easyllm.launchers import reports
from easyllm.launchers.reports import Report

LINGER = 5.0
"""Seconds between a rank's report and its exit, so that the others report as well: they would fail
as soon as it exits."""

COMMUNICATION = ("torch/distributed/", "deepspeed/comm/")
"""Parts of the names of files whose code a rank runs while it waits for others."""


class Watchdog:
    """Ends this rank when more than ``timeout_s`` passes between two calls of ``beat`` or
    ``alive``.

    It leaves a report (``easyllm.launchers.reports``) that says what the rank was doing and
    whether that was waiting for others, writes the stacks of all threads to standard error and
    exits with status HUNG. The launcher does this for ranks that cannot do it themselves.
    """

    def __init__(self, folder: Path, rank: int, timeout_s: float):
        self.folder, self.rank, self.timeout_s = folder, rank, timeout_s
        self.watched = threading.main_thread().ident
        self.beat("starting")
        self.stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def beat(self, doing: str) -> None:
        """Record what begins now."""
        self.doing, self.since = doing, time.monotonic()

    def alive(self) -> None:
        """Record that the work continues. Calls from threads that are not watched do not count."""
        if threading.get_ident() == self.watched:
            self.since = time.monotonic()

    def stop(self) -> None:
        self.stopped.set()

    def _watch(self) -> None:
        while not self.stopped.wait(min(1.0, self.timeout_s / 4)):
            if time.monotonic() - self.since > self.timeout_s:
                self._end()

    def _end(self) -> None:
        frame = sys._current_frames().get(self.watched or 0)
        waits, where = place(frame)
        waits = waits or device_busy()
        message = f"took longer than hardware.timeout_s={self.timeout_s:g} s over {self.doing}"
        message += f", {'waiting for other ranks' if waits else 'busy'} in {where}"
        reports.leave(self.folder, Report(self.rank, message, "hung", waiting=waits))
        print(f"rank {self.rank} {message}; the stacks of its threads:", file=sys.stderr)
        sys.stderr.flush()
        faulthandler.dump_traceback(all_threads=True)
        time.sleep(LINGER)
        os._exit(HUNG)


def place(frame: FrameType | None) -> tuple[bool, str]:
    """Whether a stack waits for other ranks, and the innermost function that shows where: the
    communication function that was called, or the function that runs."""
    frames = list(_outwards(frame))
    inside = [i for i, f in enumerate(frames) if _communicates(f)]
    if not frames:
        return False, "unknown code"
    shown = frames[inside[-1]] if inside else frames[0]
    code = shown.f_code
    return bool(inside), f"{code.co_name} ({Path(code.co_filename).name}:{shown.f_lineno})"


def device_busy() -> bool:
    """Whether the GPU still has work of this rank. After such a time it is waiting for other ranks,
    because Python only starts the communication there."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        # a thread has the first device by default
        return not torch.cuda.default_stream(int(os.environ.get("LOCAL_RANK", 0))).query()
    except RuntimeError:  # the device has failed, which its rank reports
        return False


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _communicates(frame: FrameType) -> bool:
    return any(part in frame.f_code.co_filename for part in COMMUNICATION)
