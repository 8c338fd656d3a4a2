"""Consecutive layers of a model, computed by transformers' own forward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from easyllm.errors import UserError
from easyllm.models.attention.documents import Documents, arguments
from easyllm.models.decoders.balance import Balance
from easyllm.models.decoders.routers import watch_routers
from easyllm.models.decoders.skeleton import LAYERS, Skeleton
from easyllm.models.layers import LayerSpec, Unprojected, head_module


class Stage:
    """The model, in which only some consecutive layers are real.

    What it computes around its layers, such as masks, positions and scales, is transformers' code.
    The layers of other stages pass on what they get. The first layer of a stage takes what the
    stage before it sent, and the last one's output is what the next stage gets: so what the model
    does before its first layer, or after its last one, is done in one stage only.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        own: Mapping[str, Callable[..., Any]],
        by_document: bool = False,
        balance: Balance | None = None,
    ):
        """``own`` are this stage's layers by name. The last may be a function of hidden states in
        place of the head.

        With ``by_document`` each document is computed by itself, for models that would otherwise
        carry something over from one document to the next; attention by document is not for them.
        """
        self.by_document = by_document
        self.alibi = skeleton.alibi
        self.model, self.base = skeleton.model, getattr(skeleton.model, skeleton.base)
        layers = getattr(self.base, LAYERS)
        begin = f"{skeleton.base}.{LAYERS}."
        held = [n for n in range(len(layers)) if f"{begin}{n}" in own]
        self.leader: Any = own[f"{begin}{held[0]}"]
        for n, layer in enumerate(layers):
            mine: Any = own.get(f"{begin}{n}")
            layers[n] = _Passing(layer) if mine is None else mine
        for name in (*skeleton.before, *skeleton.after):
            mine = own.get(f"{skeleton.base}.{name}")
            setattr(self.base, name, _Passing(getattr(self.base, name)) if mine is None else mine)
        self.entry = self.exit = self.head = None
        if held[0] > 0:
            self.entry = layers[held[0]] = _Entry(layers[held[0]])
        if skeleton.head in own:
            self.head = _Head(own[skeleton.head])
            setattr(self.model, skeleton.head, self.head)
        else:
            self.exit = layers[held[-1]] = _Exit(layers[held[-1]])
        self.device = torch.device("cpu")
        self.balance = balance
        self.logits: list[tuple[str, torch.Tensor]] = []
        """What routers gave in the last call, each with the name of its layer."""
        self.choices: dict[str, torch.Tensor] = {}
        """How often each expert was chosen in training since these were set to 0, by layer."""
        self.computing = False
        if balance is not None:
            for n in held:
                watch_routers(self.model, layers[n], functools.partial(self._keep, f"{begin}{n}"))

    def __call__(self, value: torch.Tensor, documents: Documents) -> torch.Tensor | Unprojected:
        """Token ids ``(rows, tokens)``, or hidden states ``(rows, tokens, hidden)``, to hidden
        states or logits ``(rows, tokens, vocabulary)``."""
        self._follow(value.device)
        self.computing, self.logits = True, []
        try:
            return self._rows(value, documents)
        finally:
            self.computing = False

    def routed(self, value: Any) -> torch.Tensor:
        """The sums of ``Balance.sums`` over the routers of this stage for the last call, which
        returned ``value``. They have a gradient, as pipelines expect of what stages send."""
        assert self.balance is not None
        sums = []
        for name, logits in self.logits:
            sums.append(self.balance.sums(logits))
            if self.model.training:
                chosen = sums[-1].detach()[: self.balance.experts]
                counts = self.choices.setdefault(name, torch.zeros_like(chosen))
                counts += chosen
        if sums:
            return torch.stack(sums).sum(dim=0)
        hidden = value[0] if isinstance(value, tuple) else value
        none: torch.Tensor = 0.0 * hidden.flatten()[:1].float().sum()
        return none.expand(self.balance.size)

    def _keep(self, layer: str, logits: torch.Tensor) -> None:
        """Keep what a router of a layer gives, except while activations are computed again.
        Nothing is computed of it here, which such a recomputation would have to repeat."""
        if self.computing:
            self.logits.append((layer, logits))

    def _rows(self, value: torch.Tensor, documents: Documents) -> torch.Tensor | Unprojected:
        if not self.by_document or documents.one_a_row:
            dtype = next(self.leader.parameters()).dtype if self.entry is None else value.dtype
            given = arguments(self.model.config, documents, dtype, self.alibi)
            return self._computed(value, documents.positions, **given)
        # rows end to end, because a document lies within one row
        parts = value.flatten(0, 1).unsqueeze(0).split(documents.lengths, dim=1)
        places = documents.positions.flatten().unsqueeze(0).split(documents.lengths, dim=1)
        found: list[Any] = [self._computed(*part) for part in zip(parts, places, strict=True)]
        weight = None
        if isinstance(found[0], tuple):
            weight, found = found[0][1], [hidden for hidden, _ in found]
        rows: torch.Tensor = torch.cat(found, dim=1).unflatten(1, (len(value), -1)).squeeze(0)
        return rows if weight is None else (rows, weight)

    def _computed(
        self, value: torch.Tensor, positions: torch.Tensor, **given: Any
    ) -> torch.Tensor | Unprojected:
        given |= {"position_ids": positions, "use_cache": False}
        if self.entry is None:
            given["input_ids"] = value
        else:
            # only its shape and type are used: the first layer takes ``value`` itself
            given["inputs_embeds"] = value.detach()
            self.entry.received = value
        if self.exit is None:
            assert self.head is not None
            return self.head.result(self.model(**given).logits)
        self.base(**given)
        return self.exit.taken()

    def _follow(self, device: torch.device) -> None:
        """Be on the device and in the mode of the layers, with what belongs to no layer, such as
        rotary frequencies."""
        if self.model.training != self.leader.training:
            self.model.train(self.leader.training)
        if self.device != device:
            for module in self.base.modules():
                for name, buffer in module.named_buffers(recurse=False):
                    if not buffer.is_meta:
                        setattr(module, name, buffer.to(device))
            self.device = device


class _Passing(nn.Module):
    """Stands for a layer of another stage: gives back its first argument. It has the layer's
    attributes, which some models read."""

    def __init__(self, layer: Any):
        super().__init__()
        self.__dict__["layer"] = layer  # not as a submodule, whose parameters would be counted

    def forward(self, *values: Any, **named: Any) -> Any:
        return values[0] if values else next(iter(named.values()))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)


class _Edge(nn.Module):
    """A layer at the edge of a stage, with the attributes of the layer."""

    def __init__(self, layer: Callable[..., Any]):
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            layer = self.__dict__.get("layer") or super().__getattr__("layer")
            return getattr(head_module(layer), name)


class _Entry(_Edge):
    """The first layer of a stage, which gets ``received``."""

    received: torch.Tensor | None = None

    def forward(self, *values: Any, **named: Any) -> Any:
        received, self.received = self.received, None
        if values:
            return self.layer(received, *values[1:], **named)
        return self.layer(**{**named, next(iter(named)): received})


class _Exit(_Edge):
    """The last layer of a stage, whose output is kept."""

    output: Any = None

    def forward(self, *values: Any, **named: Any) -> Any:
        self.output = self.layer(*values, **named)
        return self.output

    def taken(self) -> torch.Tensor:
        output, self.output = self.output, None
        if not isinstance(output, torch.Tensor) or output.ndim != 3:
            raise UserError(
                "parallelism=pipeline: the layers of this model give more than hidden states to "
                "the next layer; give parallelism=zero"
            )
        return output


class _Head(_Edge):
    """The head, or a function in its place. If that gives the inputs of the head instead of logits,
    nothing may be computed of its output."""

    inputs: Unprojected | None = None
    output: torch.Tensor | None = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        found = self.layer(hidden)
        if isinstance(found, tuple):
            self.inputs, self.output = found, hidden
            return hidden
        logits: torch.Tensor = found
        return logits

    def result(self, logits: torch.Tensor) -> torch.Tensor | Unprojected:
        """What the stage gives, where the model gave ``logits``."""
        inputs, output, self.inputs, self.output = self.inputs, self.output, None, None
        if inputs is None:
            return logits
        if logits is not output:
            raise UserError(
                "training.loss=linear_cross_entropy: this model scales or caps its logits; give "
                "training.loss=cross_entropy"
            )
        return inputs


def stages(
    skeleton: Callable[[], Skeleton],
    by_document: bool,
    balance: Balance | None,
    specs: Sequence[LayerSpec],
    built: Sequence[Callable[..., Any]],
) -> Stage:
    """The layers ``specs`` of the model that ``skeleton`` makes, which are ``built``, as
    ``easyllm.models.layers.Assemble`` does."""
    own = {spec.name: layer for spec, layer in zip(specs, built, strict=True)}
    return Stage(skeleton(), own, by_document, balance)
