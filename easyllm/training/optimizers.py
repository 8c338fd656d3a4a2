"""Optimizers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from easyllm.spec.roles import Optimizer
from easyllm.spec.types import Fraction, NonNegativeFloat, PositiveFloat

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    beta1: Fraction = 0.9
    """Decay of the running mean of the gradients."""
    beta2: Fraction = 0.95
    """Decay of the running mean of the squared gradients."""
    eps: PositiveFloat = 1e-8
    """Added to the square root of the mean squared gradient, by which an update is divided."""
    weight_decay: NonNegativeFloat = 0.1
    """Applied to matrices; biases and norms get none."""
    fused: bool | None = None
    """Use one kernel for the whole update, on CPUs and on CUDA; null leaves the choice to torch. It
    changes only rounding and speed."""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.AdamW:
        import torch

        return torch.optim.AdamW(
            [
                {
                    "params": group["params"],
                    "weight_decay": self.weight_decay if group.get("decay", True) else 0.0,
                }
                for group in groups
            ],
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            fused=self.fused,
        )
