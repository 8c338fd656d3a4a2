"""Learning rate schedules, pure functions of the step."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

from easyllm.spec.roles import Schedule
from easyllm.spec.types import Fraction


@dataclass(frozen=True, kw_only=True)
class _Warmed(Schedule):
    """Linear warm-up, then ``after``."""

    def factor(self, step: int, total: int) -> float:
        warming = self.warmup_factor(step, total)
        if warming is not None:
            return warming
        warmup = self.warmup_steps(total)
        return self.after((step - warmup) / max(1, total - warmup))

    @abc.abstractmethod
    def after(self, share: float) -> float:
        """The factor when ``share`` (0 to 1) of the steps after the warm-up are done."""


@dataclass(frozen=True, kw_only=True)
class Constant(_Warmed):
    """The peak learning rate for all steps."""

    def after(self, share: float) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Linear(_Warmed):
    """Falls linearly."""

    floor: Fraction = 0.0
    """The learning rate at the end, as a share of the peak."""

    def after(self, share: float) -> float:
        return 1 - (1 - self.floor) * min(1.0, share)


@dataclass(frozen=True, kw_only=True)
class Cosine(_Warmed):
    """Falls along half a cosine (Loshchilov and Hutter, 2017)."""

    floor: Fraction = 0.1
    """The learning rate at the end, as a share of the peak."""

    def after(self, share: float) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * min(1.0, share))) / 2


@dataclass(frozen=True, kw_only=True)
class WSD(_Warmed):
    """Warm-up, the peak, then a linear fall at the end (warmup-stable-decay; Hu et al., 2024).

    The learning rates before the fall do not depend on the number of steps, so a run can be made
    longer from a checkpoint of the stable part.
    """

    decay: Fraction = 0.1
    """The fall's share of the steps after the warm-up."""
    floor: Fraction = 0.0
    """The learning rate at the end, as a share of the peak."""

    def after(self, share: float) -> float:
        left = max(0.0, 1.0 - share)
        if left >= self.decay:
            return 1.0
        return self.floor + (1 - self.floor) * left / self.decay
