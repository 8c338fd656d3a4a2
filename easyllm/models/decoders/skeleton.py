"""A model of transformers without its weights, and the places of its layers.

It was written for transformers 5.19, whose configuration classes name the parts of a decoder in
order in ``base_model_pp_plan``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from easyllm.errors import UserError
from easyllm.models.layers import LayerSpec

LAYERS = "layers"
"""The name of the list of decoder layers, the same in all these models."""


@dataclass(frozen=True)
class Skeleton:
    """A causal language model whose parameters are on the meta device. Buffers that are computed
    from the configuration, such as rotary frequencies, are on the CPU."""

    model: Any
    base: str
    """The name in it of the model without a head, e.g. ``model``."""
    before: tuple[str, ...]
    """The names in the base of the modules with parameters before the decoder layers; the embedding
    is the first."""
    after: tuple[str, ...]
    """The names in the base of the modules with parameters after the decoder layers."""
    head: str
    alibi: bool = False
    """Whether attention adds ALiBi, which transformers' model does not."""

    @classmethod
    def of(cls, config: PretrainedConfig, attention: str) -> Skeleton:
        """Raises UserError where the model has no ``base_model_pp_plan`` that it follows."""
        plan = list(getattr(type(config), "base_model_pp_plan", None) or ())
        if LAYERS not in plan:
            raise UserError(
                f"models of type {config.model_type} have no base_model_pp_plan in transformers, "
                "which names the parts of a decoder"
            )
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(
                copy.deepcopy(config), dtype=torch.float32, attn_implementation=attention
            )
        _compute_buffers(model)
        _freeze_indexers(model)
        prefix = model.base_model_prefix
        base = getattr(model, prefix)
        missing = [name for name in plan if not hasattr(base, name)]
        head = next(n for n, m in model.named_modules() if m is model.get_output_embeddings())
        if missing or next(base.parameters(recurse=False), None) is not None:
            raise UserError(
                f"models of type {config.model_type} have parameters outside of the layers that "
                "base_model_pp_plan names"
            )
        place = plan.index(LAYERS)
        own = {n for n, child in base.named_children() if _has_state(child)}
        # modules beside the plan, such as further embeddings, are used before the layers
        others = [n for n, _ in base.named_children() if n in own and n not in plan]
        return cls(
            model, prefix,
            before=tuple([n for n in plan[:place] if n in own] + others),
            after=tuple(n for n in plan[place + 1 :] if n in own),
            head=head,
        )  # fmt: skip

    @property
    def config(self) -> Any:
        return self.model.config

    def specs(self) -> list[LayerSpec]:
        """The layers in order."""
        model, base = self.model, getattr(self.model, self.base)
        count = len(getattr(base, LAYERS))

        def spec(name: str, decoder: bool = False, tied_to: str | None = None) -> LayerSpec:
            return LayerSpec(name, partial(self.build, name), decoder, tied_to)

        embedding = f"{self.base}.{self.before[0]}"
        tied = getattr(model, self.head).weight is model.get_input_embeddings().weight
        return [
            *(spec(f"{self.base}.{name}") for name in self.before),
            *(spec(f"{self.base}.{LAYERS}.{n}", decoder=True) for n in range(count)),
            *(spec(f"{self.base}.{name}") for name in self.after),
            spec(self.head, tied_to=embedding if tied else None),
        ]

    def build(self, name: str) -> nn.Module:
        """A copy of the module ``name``, with its parameters on the meta device."""
        module: nn.Module = copy.deepcopy(self.model.get_submodule(name))
        return module


def _has_state(module: nn.Module) -> bool:
    return bool(module.state_dict())


def initialize(model: Any, name: str, module: nn.Module) -> None:
    """Give the part ``name`` of a model its first values, as the class that it belongs to does."""
    base = getattr(model, model.base_model_prefix)
    inner = f"{name}.".startswith(f"{model.base_model_prefix}.")
    (base if inner else model)._init_weights(module)


def _freeze_indexers(model: Any) -> None:
    """Indexers choose tokens, which has no gradient. Without one, the optimizer would still decay
    their weights."""
    for module in model.modules():
        if type(module).__name__.endswith("Indexer"):
            module.requires_grad_(False)


def _compute_buffers(model: Any) -> None:
    """Compute the buffers that no file holds, as ``from_pretrained`` does after loading."""
    for path, module in model.named_modules():
        names = module._non_persistent_buffers_set
        found = [n for n in names if getattr(module, n, None) is not None]
        for name in found:
            setattr(module, name, torch.zeros_like(getattr(module, name), device="cpu"))
        if found:
            with torch.no_grad():
                initialize(model, path, module)  # on the meta device parameters stay as they are
