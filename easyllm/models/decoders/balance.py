"""The loss that keeps experts evenly used, over layers that may lie on several pipeline stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Balance:
    """Switch Transformer's load balancing loss (Fedus et al., 2021) over all layers together, as
    ``load_balancing_loss_func`` of transformers 5.19 computes it without an attention mask.

    It is ``experts * sum(f * p)``, where f is each expert's share of the choices and p its mean
    probability. Both are means over all layers, so layers only add up sums.
    """

    coefficient: float
    """Of this loss in the sum with the cross entropy."""
    experts: int
    chosen: int
    """Experts of a token."""

    @property
    def size(self) -> int:
        """Elements of ``sums``."""
        return 2 * self.experts + 1

    def sums(self, logits: torch.Tensor) -> torch.Tensor:
        """For a router's ``logits`` of shape ``(…, experts)``: choices by expert, probabilities by
        expert, and the number of tokens."""
        flat = logits.flatten(0, -2)
        probabilities = torch.softmax(flat, dim=-1)
        chosen = torch.topk(probabilities, self.chosen, dim=-1).indices
        counts = torch.bincount(chosen.flatten(), minlength=self.experts).float()
        number = counts.new_tensor([float(len(flat))])
        return torch.cat([counts, probabilities.float().sum(dim=0), number])

    def loss(self, sums: torch.Tensor) -> torch.Tensor:
        """The loss, without the coefficient, from the sum of all layers' ``sums``."""
        counts, probabilities, number = sums.split([self.experts, self.experts, 1])
        # counts have no gradient, and no layer has a router where the number is 0
        total = number.clamp(min=1)
        loss: torch.Tensor = self.experts * ((counts / total) * (probabilities / total)).sum()
        return loss


def expert_load(choices: Sequence[float], experts: int) -> dict[str, float]:
    """For metrics, from the choices of each layer's experts, one layer after the other: the largest
    share of one expert in any layer, and the mean over the layers of the shares' entropy, divided
    by that of equal shares. Layers without choices have no routers."""
    counts = torch.tensor(choices, dtype=torch.float64).view(-1, experts)
    used = counts[counts.sum(dim=1) > 0]
    shares = used / used.sum(dim=1, keepdim=True)
    entropy = -(shares * shares.clamp(min=1e-30).log()).sum(dim=1)
    return {
        "expert_share": shares.max().item(),
        "expert_entropy": entropy.mean().item() / math.log(experts),
    }
