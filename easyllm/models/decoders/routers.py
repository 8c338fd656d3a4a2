"""The routers of experts in transformers' models.

It was written for transformers 5.19. Its classes say in ``_can_record_outputs`` which modules give
``router_logits``, and its load balancing loss is one function, copied into each file that has it.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from easyllm.models.decoders.balance import Balance

STANDARD = ["gate_logits", "num_experts", "top_k", "attention_mask"]
"""The arguments of the loss that is computed here; Doge's is another."""
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k")
"""Keys for the number of experts of a token."""


def balance_of(model: Any, coefficient: float | None) -> Balance | None:
    """The loss over the routers of ``model`` with this coefficient. None where it is 0, where the
    model has no routers, and, without a coefficient, where transformers computes no such loss for
    it."""
    function = getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)
    standard = function and list(inspect.signature(function).parameters) == STANDARD
    if coefficient is None:
        coefficient = getattr(model, "router_aux_loss_coef", 0.0) if standard else 0.0
    found = [router for router, _ in routers(model, model)]
    chosen = experts_of_a_token(model.config.to_dict())
    if not coefficient or not found or chosen is None:
        return None
    return Balance(coefficient, _experts(model), chosen)


def experts_of_a_token(config: Mapping[str, Any]) -> int | None:
    return next((number for key in CHOSEN if (number := config.get(key))), None)


def _experts(model: Any) -> int:
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    found = (getattr(owner, name, None) for owner in (model, model.config) for name in names)
    return next(int(number) for number in found if number)


def routers(model: Any, within: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """The routers in a part of ``model``, each with the place of its logits in what it returns."""
    for path, module in within.named_modules():
        for recorder in _recorders(model):
            named = recorder.layer_name is None or f".{recorder.layer_name}." in f".{path}."
            if isinstance(module, recorder.target_class) and named:
                yield module, recorder.index


def watch_routers(model: Any, within: nn.Module, receive: Callable[[torch.Tensor], None]) -> None:
    """Give ``receive`` the logits of each router in a part of ``model`` whenever it is called."""

    def watch(router: nn.Module, inputs: Any, output: Any, place: int) -> None:
        receive(output[place] if isinstance(output, tuple) else output)

    for router, place in routers(model, within):
        router.register_forward_hook(functools.partial(watch, place=place))


def _recorders(model: Any) -> list[Any]:
    base = getattr(model, model.base_model_prefix)
    given = (getattr(base, "_can_record_outputs", None) or {}).get("router_logits")
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]
