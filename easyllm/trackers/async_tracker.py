"""A tracker that gets its lines in its own thread, so that training never waits for it."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Mapping
from typing import Any

CLOSING = 60.0
"""Seconds that a tracker has at the end for the remaining steps."""

WAITING = 10_000
"""Most steps that wait for a tracker; further ones are not sent to it."""


class AsyncTracker:
    """An open tracker, ``writer``, whose ``log`` and ``close`` a thread calls.

    An exception from it is reported once, and it lacks that step's values, which ``metrics.jsonl``
    has.
    """

    def __init__(self, name: str, writer: Any):
        self._name, self._writer = name, writer
        self._steps: queue.Queue[tuple[int, Mapping[str, Any]] | None] = queue.Queue()
        self._reported = False
        self._given = self._taken = 0
        """Numbers of steps given to the tracker, and of steps that it has recorded."""
        self._thread = threading.Thread(target=self._feed, daemon=True, name=f"tracker {name}")
        self._thread.start()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Put a step into the tracker's queue."""
        self._given += 1
        if self._steps.qsize() < WAITING:
            self._steps.put((step, dict(values)))

    def close(self) -> None:
        """Let the tracker record the remaining steps and close it. Steps that take longer than
        CLOSING are left out."""
        self._steps.put(None)
        self._thread.join(timeout=CLOSING)
        missing = f"lacks {self._given - self._taken} of {self._given} steps"
        if self._thread.is_alive():
            self._say(f"does not answer; it {missing}")
        elif self._taken < self._given:
            self._say(missing)

    def _feed(self) -> None:
        while (given := self._steps.get()) is not None:
            try:
                self._writer.log(*given)
                self._taken += 1
            except Exception as error:  # from any library
                self._fail(error)
        try:
            self._writer.close()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._reported:
            self._say(f"{type(error).__name__}: {error}")
            self._reported = True

    def _say(self, what: str) -> None:
        print(
            f"training.trackers.{self._name}: {what}; metrics.jsonl has all",
            file=sys.stderr, flush=True,
        )  # fmt: skip
