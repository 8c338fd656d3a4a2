"""What a run checks of itself around its first step."""

from __future__ import annotations

import torch

from easyllm.parallelism.engine import TrainEngine
from easyllm.training.checks.first_step import PlainStep
from easyllm.training.checks.packing import check_packing
from easyllm.training.setup import Setup


class Checks:
    def __init__(self, setup: Setup):
        self.setup = setup
        self.found: dict[str, float] = {}
        """The differences, by what was compared; for the stage's record."""
        self.plain: PlainStep | None = None

    def before(self, engine: TrainEngine, device: torch.device) -> None:
        """Every rank must call it before the first step of a run, also of one that begins with a
        checkpoint's weights. Raises UserError."""
        run, training = self.setup.run, self.setup.run.training
        if not self.setup.total_steps:
            return
        if training.check_packing and run.data.packing != "none":
            self.found["packing"] = check_packing(run, self.setup.config.vocab_size, engine)
        # the plain model is given the model's first weights, not a checkpoint's
        if training.check_engine and self.setup.resume.checkpoint is None:
            self.plain = PlainStep(self.setup, device)

    def after(self, loss: float, norm: float) -> None:
        """Every rank must call it with each step's outcome. Raises UserError."""
        if self.plain is not None:
            self.found |= self.plain.compare(loss, norm)
            self.plain = None
