"""When a checkpoint is due, and when a run has to end because there is no time left."""

from __future__ import annotations

import time

from easyllm.spec.training import TrainingSpec
from easyllm.training.checkpointing.saving import Saver
from easyllm.training.stopping import Stop


class SavePolicy:
    """Decides for one rank; rank 0's decisions hold for all."""

    def __init__(self, spec: TrainingSpec, saver: Saver):
        self.spec, self.saver = spec, saver
        self.longest_step = 0.0
        """Seconds of the longest step of this start, evaluation included."""

    def stepped(self, seconds: float) -> None:
        """Record how long a step took."""
        self.longest_step = max(self.longest_step, seconds)

    def out_of_time(self, stop: Stop) -> bool:
        """Whether another step and a checkpoint would exceed ``training.max_runtime``."""
        limit = self.spec.max_runtime
        return limit is not None and stop.seconds + self.longest_step + self.saver.longest > limit

    def time_is_due(self) -> bool:
        """Whether ``training.checkpoint.every``, a time, has passed since the last save."""
        seconds = self.spec.checkpoint.seconds
        return seconds is not None and time.monotonic() - self.saver.last >= seconds

    def step_is_due(self, step: int, total: int) -> bool:
        """Whether ``training.checkpoint.every``, in steps, is reached, or the end."""
        return due(step, total, self.spec.checkpoint.steps)


def due(step: int, total: int, every: int | None) -> bool:
    """Whether something done every so many steps, and at the end, is to be done after ``step``."""
    return step == total or bool(every and step % every == 0)
