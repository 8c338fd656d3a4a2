"""Metrics of training: a line a step in ``metrics.jsonl``, and the run's trackers."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from easyllm.files import atomic_write, json_line, read_json_line
from easyllm.paths import RunPaths
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import flatten, write
from easyllm.trackers.async_tracker import AsyncTracker


class MetricsLog:
    """Appends to ``metrics.jsonl`` and sends lines to the trackers; use it as a context manager.

    One rank keeps the log; on the others it does nothing. Lines after step ``done``, which a run
    left that was stopped before it could save, are removed first.
    """

    def __init__(self, run: RunSpec, done: int, keep: bool):
        self._file: TextIO | None = None
        self._trackers: list[AsyncTracker] = []
        if not keep:
            return
        paths = RunPaths(run)
        lines = [line for line in read(paths.metrics) if line["step"] <= done]
        with atomic_write(paths.metrics) as temporary:
            temporary.write_text("".join(json_line(line) + "\n" for line in lines), "utf-8")
        if lost := missing_steps(lines, done):
            print(f"{paths.metrics}: {lost}", file=sys.stderr, flush=True)
        self._file = paths.metrics.open("a", encoding="utf-8")
        settings = flatten(write(run))
        self._trackers = [
            AsyncTracker(name, tracker.open(name, paths.root, settings, done=done))
            for name, tracker in run.training.trackers.items()
        ]

    def log(self, line: Mapping[str, Any]) -> None:
        """Record a step; ``line["step"]`` counts from 1."""
        if self._file:
            self._file.write(json_line(line) + "\n")
            self._file.flush()
        for tracker in self._trackers:
            tracker.log(line["step"], line)

    def sync(self) -> None:
        """Flush the lines to disk, so that no checkpoint is without the lines of its steps."""
        if self._file:
            os.fsync(self._file.fileno())

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file:
            self._file.close()
        for tracker in self._trackers:
            tracker.close()


def read(file: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``. An incomplete last line is left out; damaged ones are too,
    with a message."""
    lines = []
    texts = file.read_bytes().split(b"\n") if file.exists() else []
    for number, text in enumerate(texts[:-1], 1):
        try:
            line = read_json_line(text.decode())
            int(line["step"])
            lines.append(line)
        except (ValueError, KeyError, TypeError):
            print(f"{file}, line {number}: is damaged and left out", file=sys.stderr, flush=True)
    return lines


def missing_steps(lines: list[dict[str, Any]], done: int) -> str:
    """A message about the steps from 1 to ``done`` that have no line; empty if none is missing."""
    there = {line["step"] for line in lines}
    lost = [step for step in range(1, done + 1) if step not in there]
    if not lost:
        return ""
    which = f"step {lost[0]}" if len(lost) == 1 else f"{len(lost)} steps from step {lost[0]} on"
    return f"the metrics of {which} are lost; the weights are not affected"


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The totals of all steps for the record of training: tokens, losses, seconds and speed."""
    if not lines:
        return {"tokens": 0, "seconds": 0.0}
    losses = [line["loss"] for line in lines if not line.get("skipped")] or [None]
    evaluated = [line["eval_loss"] for line in lines if "eval_loss" in line]
    found = {
        "tokens": sum(line["tokens"] for line in lines),
        "tokens_per_second": statistics.median(line["tokens_per_second"] for line in lines),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "skipped_steps": sum(bool(line.get("skipped")) for line in lines),
        "seconds": sum(line["seconds"] for line in lines),
    }
    if "mfu" in lines[-1]:
        found["mfu"] = statistics.median(line["mfu"] for line in lines)
    if evaluated:
        found["eval_loss"] = evaluated[-1]
    return found
