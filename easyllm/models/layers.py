"""A model as a list of layers, which are modules of transformers' own model.

The layers in order: the embedding, which takes token ids ``(rows, tokens)``, decoder layers over
hidden states ``(rows, tokens, hidden)``, the last norm, and the head, which gives logits ``(rows,
tokens, vocabulary)``. Parameters keep their Hugging Face names, so a pipeline stage, a ZeRO replica
and a single process read and write the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from easyllm.errors import UserError
from easyllm.models.attention.documents import Documents
from easyllm.models.custom.modeling_baichuan import NormHead, normal_rows
from easyllm.models.decoders.balance import Balance
from easyllm.spec.roles import LayerShape


@dataclass(frozen=True)
class LayerSpec:
    """How to build one layer."""

    name: str
    """The prefix of its parameters' names, e.g. ``model.layers.3``."""
    build: Callable[[], nn.Module]
    """Builds the layer with its parameters on the meta device; they are filled later."""
    decoder: bool = False
    """Whether it is one of the decoder layers, which can recompute their activations."""
    tied_to: str | None = None
    """The layer whose ``weight`` it shares; it then has no own weight."""
    adapt: Callable[[nn.Module], None] | None = None
    """Changes a built layer into the trained one: freezes weights, puts adapters on it."""

    def trained(self) -> nn.Module:
        """The layer as it is trained, built on the meta device."""
        module = self.build()
        if self.adapt:
            self.adapt(module)
        return module


def checkpoint_activations(layer: nn.Module) -> None:
    """Make a decoder layer recompute its activations in the backward pass."""
    hooks: Any = layer
    hooks.gradient_checkpointing = True
    hooks._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


def param_specs(layers: Iterable[LayerSpec]) -> list[LayerShape]:
    """The names and shapes of the layers' own parameters, without adapters."""
    return [_param_spec(spec) for spec in layers]


def _param_spec(spec: LayerSpec) -> LayerShape:
    module, begin = spec.build(), f"{spec.name}."
    own = {} if spec.tied_to else dict(module.named_parameters())
    shapes = {f"{begin}{name}": tuple(parameter.shape) for name, parameter in own.items()}
    linears = [f"{begin}{n}" for n, m in module.named_modules() if isinstance(m, nn.Linear)]
    return LayerShape(spec.name, shapes, spec.decoder, spec.tied_to, tuple(linears))


def tensor_shapes(layers: Iterable[LayerSpec]) -> dict[str, torch.Size]:
    """The shapes of the parameters and buffers that files hold, by name: shared parameters once,
    and without adapters."""
    return {
        f"{spec.name}.{name}": tensor.shape
        for spec in layers
        if spec.tied_to is None
        for name, tensor in spec.build().state_dict().items()
    }


def stored_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that files hold, by name."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return {n: tensor for n, tensor in module.state_dict().items() if n not in parameters}


Forward = Callable[[torch.Tensor, Documents], Any]
"""Consecutive layers as one function of token ids or hidden states."""
Assemble = Callable[[Sequence[LayerSpec], Sequence[Callable[..., Any]]], Forward]
"""Makes that function of the layers and of their built modules. The last may be a function of
hidden states in place of the head."""


@dataclass(frozen=True)
class Assembly:
    """How a model's layers are computed."""

    assemble: Assemble
    balance: Balance | None = None
    """The loss over the routers of experts, where there is one. The functions of ``assemble`` then
    have ``easyllm.models.decoders.stage.Stage.routed``."""


Unprojected = tuple[torch.Tensor, torch.Tensor]
"""Logits that are not computed yet: hidden states ``(rows, tokens, hidden)``, and the matrix
``(vocabulary, hidden)`` that turns them into logits."""


def head_module(head: Any) -> Any:
    """The module that has the head's matrix, where a function of it may take the head's place: the
    embedding for a tied head in a pipeline, or ``unprojected``."""
    while isinstance(head, partial):
        head = head.args[0]
    return head


def unprojected(head: Any, hidden: torch.Tensor) -> Unprojected:
    """The inputs of ``head(hidden)``, which the loss computes. Raises UserError for a head that is
    more than a matrix."""
    module = head_module(head)
    if not isinstance(module, nn.Linear | nn.Embedding):
        raise UserError(
            f"training.loss=linear_cross_entropy takes a head that is one matrix, and this is a "
            f"{type(module).__name__}; give training.loss=cross_entropy, or an adapter that "
            "leaves the head alone"
        )
    if isinstance(module, NormHead):
        return hidden, normal_rows(module.weight)
    # a separate tensor: DeepSpeed clears gradients when that of the first output arrives, and the
    # weight's own may already have been summed by then
    return hidden, module.weight.view_as(module.weight)


def causal_loss(
    logits: torch.Tensor | Unprojected, labels: torch.Tensor, scale: torch.Tensor | float = 1.0
) -> torch.Tensor:
    """Cross entropy in fp32, summed over the trained tokens and multiplied by ``scale``.

    ``logits`` is ``(rows, tokens, vocabulary)``; ``labels`` ``(rows, tokens)`` holds at each
    position its own token, or -100 where that token is not trained.
    """
    # labels are shifted instead of logits, whose shifted copy would be the largest tensor
    targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100).flatten()
    if isinstance(logits, torch.Tensor):
        return scale * nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), targets, reduction="sum"
        )
    hidden, weight = logits
    # torch would sum bfloat16 losses in bfloat16
    losses = nn.functional.linear_cross_entropy(
        hidden.flatten(0, 1), weight, targets, reduction="none",
        options=nn.LinearCrossEntropyOptions(),
    )  # fmt: skip
    return scale * losses.float().sum()
