"""The parts of parameters that this rank's optimizer updates, for every way of splitting them.

DeepSpeed flattens, pads and splits the tensors that the optimizer gets, differently in each stage
of ZeRO. A fragment names elements of a parameter and the place of their state, so that state can be
saved by the parameter's name and loaded in any other layout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from easyllm.errors import UserError

MASTER = "master"
"""The name of the fp32 copy of weights that are held in another type."""


@dataclass(frozen=True)
class Fragment:
    """Elements ``begin`` to ``begin + length`` of a flattened parameter."""

    name: str
    """The parameter's name in the whole model."""
    begin: int
    length: int
    held: torch.Tensor
    """The tensor that the optimizer updates: the parameter itself, or a flat tensor that holds this
    fragment and others."""
    offset: int
    """The index in the flattened ``held`` at which the fragment begins."""
    low_precision: bool
    """Whether ``held`` is an fp32 copy of weights of another type."""

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The fragment's view of a tensor of the shape of ``held``."""
        return tensor.detach().view(-1)[self.offset : self.offset + self.length]


def state_of(fragment: Fragment, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state of a fragment, by name: vectors of ``length``, or scalars such as the
    number of steps.

    Raises UserError for an optimizer whose state is not stored by element.
    """
    found = {}
    if fragment.low_precision:
        found[MASTER] = fragment.of(fragment.held)
    for key, value in optimizer.state.get(fragment.held, {}).items():
        if not torch.is_tensor(value):
            value = torch.tensor(value)
        if value.shape == fragment.held.shape:
            found[key] = fragment.of(value)
        elif value.numel() == 1:
            found[key] = value.detach().reshape(())
        else:
            raise UserError(
                f"training.optimizer: {type(optimizer).__name__} keeps {key} of shape "
                f"{tuple(value.shape)} for weights of shape {tuple(fragment.held.shape)}; only "
                "state by element, or one number, can be saved"
            )
    return found


@torch.no_grad()
def take_up(
    fragment: Fragment, state: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> None:
    """Give the optimizer what ``state_of`` returned for the fragment."""
    held = fragment.held
    for key, value in state.items():
        if key == MASTER:
            if fragment.low_precision:
                fragment.of(held).copy_(value)
            continue
        known = optimizer.state[held]
        if value.ndim == 0:
            there = known.get(key)
            # the fused kernel needs the number of steps on the device of the weights
            fused = bool(optimizer.defaults.get("fused"))
            device = there.device if torch.is_tensor(there) else held.device if fused else "cpu"
            known[key] = value.to(device)
            continue
        if key not in known:
            known[key] = torch.zeros_like(held, dtype=value.dtype, requires_grad=False)
        fragment.of(known[key]).copy_(value)
