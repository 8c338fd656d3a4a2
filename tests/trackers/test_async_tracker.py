"""Training does not wait for its trackers."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from easyllm.trackers import async_tracker
from easyllm.trackers.async_tracker import AsyncTracker
from tests.support import PATIENCE


class Never:
    """A tracker that never answers."""

    def __init__(self) -> None:
        self.begun = threading.Event()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self.begun.set()
        threading.Event().wait()

    close = log


class Broken:
    """One whose disk is full at step 2."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.closed = False

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        if step == 2:
            raise OSError(28, "No space left on device")
        self.steps.append(step)

    def close(self) -> None:
        self.closed = True


def test_a_tracker_that_never_answers_slows_no_step_and_no_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(async_tracker, "CLOSING", 0.2)
    monkeypatch.setattr(async_tracker, "WAITING", 50)
    never = Never()
    tracker = AsyncTracker("mine", never)
    for step in range(1, 201):
        tracker.log(step, {"loss": 1.0})
    assert never.begun.wait(PATIENCE)
    tracker.close()
    said = capsys.readouterr().err
    assert "training.trackers.mine: does not answer; it lacks 200 of 200 steps" in said


def test_a_tracker_that_fails_ends_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    broken = Broken()
    tracker = AsyncTracker("mine", broken)
    for step in (1, 2, 3):
        tracker.log(step, {"loss": 1.0})
    tracker.close()
    assert (broken.steps, broken.closed) == ([1, 3], True)
    said = capsys.readouterr().err
    assert "training.trackers.mine: OSError: [Errno 28] No space left on device" in said
    assert "lacks 1 of 3 steps; metrics.jsonl has all" in said
