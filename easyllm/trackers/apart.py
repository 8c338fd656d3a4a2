"""A tracker fed by a thread of its own, so that training never waits for it."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Mapping
from typing import Any

CLOSING = 60.0
"""Seconds that a tracker has at the end for what it was not given yet."""

WAITING = 10_000
"""Steps that wait for a tracker at most; of more it never learns."""


class Apart:
    """An open tracker, ``writer``, whose ``log`` and ``close`` a thread calls.

    What it raises is said once and costs that step's values: ``metrics.jsonl`` has them.
    """

    def __init__(self, name: str, writer: Any):
        self._name, self._writer = name, writer
        self._steps: queue.Queue[tuple[int, Mapping[str, Any]] | None] = queue.Queue()
        self._told = False
        self._given = self._taken = 0
        """Steps for the tracker, and those that it has recorded."""
        self._thread = threading.Thread(target=self._feed, daemon=True, name=f"tracker {name}")
        self._thread.start()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Have the tracker record a step, when it comes to it."""
        self._given += 1
        if self._steps.qsize() < WAITING:
            self._steps.put((step, dict(values)))

    def close(self) -> None:
        """Give the tracker what waits and end it; what takes longer than CLOSING is left out."""
        self._steps.put(None)
        self._thread.join(timeout=CLOSING)
        lacks = f"lacks {self._given - self._taken} of {self._given} steps"
        if self._thread.is_alive():
            self._say(f"does not answer; it {lacks}")
        elif self._taken < self._given:
            self._say(lacks)

    def _feed(self) -> None:
        while (given := self._steps.get()) is not None:
            try:
                self._writer.log(*given)
                self._taken += 1
            except Exception as error:  # of whatever library
                self._fail(error)
        try:
            self._writer.close()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._told:
            self._say(f"{type(error).__name__}: {error}")
            self._told = True

    def _say(self, what: str) -> None:
        print(
            f"training.trackers.{self._name}: {what}; metrics.jsonl has all",
            file=sys.stderr, flush=True,
        )  # fmt: skip
