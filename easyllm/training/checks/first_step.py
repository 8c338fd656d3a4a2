"""Whether the first step is that of the plain model, in one process, without an engine."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from easyllm.errors import UserError
from easyllm.models.attention.documents import Documents
from easyllm.models.decoders.routers import watch_routers
from easyllm.models.layers import causal_loss, tensor_shapes
from easyllm.models.weights import DTYPES
from easyllm.parallelism import world
from easyllm.spec.model import trainable
from easyllm.training.batches import Share
from easyllm.training.checkpointing.resuming import first_weights
from easyllm.training.sampling import samples_of
from easyllm.training.setup import Setup

ROUNDING = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""The largest relative difference of loss and gradient norm that rounding explains, by dtype."""


class PlainStep:
    """Loss and norm of the gradient of the run's first step by transformers' model, each document
    by itself. Only the main rank computes them."""

    def __init__(self, setup: Setup, device: torch.device):
        self.setup, self.device = setup, device
        computed = None if not world.is_main() or _random(setup.config) else self._computed()
        self.computed: tuple[float, float] | None = world.broadcast_object(computed)

    def compare(self, loss: float, norm: float) -> dict[str, float]:
        """The relative differences; empty for a model with dropout. Raises UserError where one is
        more than rounding."""
        if self.computed is None:
            return {}
        plain_loss, plain_norm = self.computed
        limit = ROUNDING[DTYPES[self.setup.run.model.dtype]]
        pairs = {"loss": (loss, plain_loss)}
        if self.setup.run.training.adapter is None:
            pairs["grad_norm"] = norm, plain_norm
        found = {}
        for name, pair in pairs.items():
            found[f"engine_{name}"] = difference = _relative_difference(*pair)
            if not difference <= limit:
                engine, plain = pair
                raise UserError(
                    f"training.check_engine: the first step's {name} is {engine:.6g}, and "
                    f"{plain:.6g} by transformers' plain model on the same rows; they differ by "
                    f"{difference:.2g}, where rounding explains {limit:.0e}. Nothing was saved. "
                    "Give training.check_engine=false to train all the same, and report this"
                )
        return found

    def _computed(self) -> tuple[float, float]:
        setup = self.setup
        model = self._model()
        layout, balance = setup.run.parallelism, setup.assembly.balance
        wanted = samples_of(0, layout, 0, 1)
        shares = [Share.of([[setup.rows.sample(i) for i in micro]], setup.config.vocab_size)
                  for micro in wanted]  # fmt: skip
        trained = sum(share.trained for share in shares)
        total = 0.0
        routed: list[torch.Tensor] = []
        if balance:
            watch_routers(model, model, routed.append)
        for share in shares:
            world.beat("the first step by the plain model")
            ((ids, labels, positions),) = share.tensors
            lengths = Documents.of(positions).lengths
            loss = torch.zeros((), device=self.device)
            for part, target in zip(
                ids.flatten().split(lengths), labels.flatten().split(lengths), strict=True
            ):
                logits = model(input_ids=part[None].to(self.device), use_cache=False).logits
                loss = loss + causal_loss(logits, target[None].to(self.device), 1 / trained)
            if balance:
                sums = torch.stack([balance.sums(logits) for logits in routed])
                loss = loss + balance.coefficient * balance.loss(sums.sum(dim=0)) / len(wanted)
                routed.clear()
            loss.backward()
            total += loss.item()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        return total, math.sqrt(sum(float(grad.double().square().sum()) for grad in grads))

    def _model(self) -> Any:
        setup = self.setup
        run, family = setup.run, setup.family
        attention = run.model.attention if run.model.attention in ("sdpa", "eager") else "sdpa"
        dtype = DTYPES[run.model.dtype]
        model: Any = AutoModelForCausalLM.from_config(
            copy.deepcopy(setup.config), dtype=dtype, attn_implementation=attention
        )
        weights = first_weights(run, setup.config, family)
        shapes = tensor_shapes(setup.layers)
        state = {name: weights.tensor(name, shape) for name, shape in shapes.items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        model.tie_weights()
        tied = {f"{layer.name}.weight" for layer in setup.layers if layer.tied_to}
        if unexpected or set(missing) - tied:
            raise RuntimeError(f"the plain model lacks {unexpected} and has {missing} besides")
        self._freeze(model)
        return model.to(self.device).train()

    def _freeze(self, model: Any) -> None:
        for pattern in self.setup.run.training.freeze.values():
            for name, parameter in model.named_parameters():
                if trainable.matches(pattern, name):
                    parameter.requires_grad_(False)


def _random(config: Any) -> bool:
    """Whether a model draws random numbers in training."""
    values = config.to_dict().items()
    return any("drop" in key and isinstance(value, float) and value > 0 for key, value in values)


def _relative_difference(found: float, expected: float) -> float:
    return abs(found - expected) / max(abs(expected), 1e-12)
