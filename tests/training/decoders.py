"""Types of decoders trained on ranks, and by transformers' plain model in one process."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from easyllm.data.dataset.rows import open_rows
from easyllm.models.decoders.family import Decoder
from easyllm.models.layers import causal_loss
from easyllm.training.checkpointing.checkpoints import newest
from tests.models.decoders import QUICK, published, save
from tests.models.small import tensors
from tests.support import merged, run_spec
from tests.training.conftest import GLOBAL_BATCH, PIPELINE, ZERO, Small, Trained, launch

STEPS = 3
LAYOUTS: dict[str, dict[str, Any]] = {
    "pipe2": {"_target_": PIPELINE},
    "zero1": {"_target_": ZERO, "zero_stage": 1},
}
MICRO_BATCH = 2
ROUNDING = {"gemma3n_text": 1e-4}
"""The tolerance of types whose several streams amplify rounding."""
ROUTED = frozenset(
    "deepseek_v4 ernie4_5_moe flex_olmo gpt_oss laguna mellum minimax minimax_m2 "  # noqa: SIM905
    "minimax_m3_vl_text mixtral qwen2_moe qwen3_moe qwen3_5_moe_text qwen3_next".split()
)
"""Types for which transformers computes a loss over the routers of experts."""
EPS = 1e-2
"""AdamW's, so large that rounding in a gradient near zero does not become a step of full size."""


def case(small: Small, name: str, layout: dict[str, Any]) -> dict[str, Any]:
    config = small.config(name, layout, 2)
    values = published(small.root / name)
    attention = Decoder(type=values["model_type"]).attentions(values)[0]
    training: dict[str, Any] = {
        "steps": STEPS, "gradient_clipping": 0.0, "evaluate": {"fraction": 0.0},
        "optimizer": {"eps": EPS},
    }  # fmt: skip
    training["check_engine"] = layout is LAYOUTS["pipe2"] and name in QUICK
    return merged(config, {"training": training, "model": {"attention": attention}})


@dataclass(frozen=True)
class Plain:
    """What transformers' model gives."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Decoders:
    """Folders of models, and what the ranks made of them."""

    small: Small
    trained: Trained

    @classmethod
    def of(cls, small: Small, types: list[str], folder: Path) -> Decoders:
        cases: list[dict[str, Any]] = []
        for name in types:
            save(name, small.root / name)
            values = published(small.root / name)
            for layout, settings in LAYOUTS.items():
                if layout == "zero1" or not Decoder(type=name).uncut(values):
                    config = case(small, name, settings)
                    cases.append({"name": f"{name}-{layout}", "config": config})
        return cls(small, launch(folder, 2, cases))

    def layouts(self, name: str) -> list[str]:
        return [each for each in LAYOUTS if (self.trained.root / f"{name}-{each}").is_dir()]

    def weights(self, case: str) -> dict[str, torch.Tensor]:
        self.trained.check(case)
        checkpoint, _ = newest(self.trained.root / case / "run" / "checkpoints")
        assert checkpoint is not None
        return tensors(checkpoint.weights)

    def plain(self, name: str) -> Plain:
        return _plain(self.small.root, name)


@cache
def _plain(root: Path, name: str) -> Plain:
    """Transformers' model under torch's AdamW, each document by itself."""
    small = Small(root)
    run = run_spec(root, case(small, name, LAYOUTS["zero1"]))
    rows = open_rows(run)
    model = AutoModelForCausalLM.from_pretrained(
        root / name, dtype=torch.float32, attn_implementation=run.model.attention
    )
    for module in model.modules():
        if type(module).__name__.endswith("Indexer"):  # without a gradient
            module.requires_grad_(False)
    built = AutoModelForCausalLM.from_config(model.config)
    for path, parameter in built.named_parameters():
        if not parameter.requires_grad:  # which from_pretrained forgets: Ernie 4.5's bias
            model.get_parameter(path).requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95), eps=EPS,
    )  # fmt: skip
    balance = getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)
    asked = {"output_router_logits": True} if name in ROUTED else {}
    losses, norms = [], []
    model.train()
    for step in range(STEPS):
        picked = [rows.sample(step * GLOBAL_BATCH + place) for place in range(GLOBAL_BATCH)]
        trained = sum(int((row.labels[1:] != -100).sum()) for row in picked)
        loss = torch.zeros(())
        for place in range(0, GLOBAL_BATCH, MICRO_BATCH):
            routed = []
            for row in picked[place : place + MICRO_BATCH]:
                begins = np.flatnonzero(row.positions == 0)[1:]
                for ids, labels in zip(
                    np.split(row.input_ids, begins), np.split(row.labels, begins), strict=True
                ):
                    found = model(input_ids=torch.tensor(ids)[None], use_cache=False, **asked)
                    routed.append(getattr(found, "router_logits", None))
                    loss += causal_loss(found.logits, torch.tensor(labels)[None], 1 / trained)
            if asked:
                layers = tuple(torch.cat(parts) for parts in zip(*routed, strict=True))
                coefficient = model.router_aux_loss_coef * MICRO_BATCH / GLOBAL_BATCH
                loss += coefficient * balance(layers, model.num_experts, model.num_experts_per_tok)
        loss.backward()
        for parameter in parameters:
            if parameter.grad is None:  # DeepSpeed decays what a step has not used
                parameter.grad = torch.zeros_like(parameter)
        grads = [p.grad for p in parameters]
        norms.append(float(torch.stack([g.square().sum() for g in grads]).sum().sqrt()))
        for group in optimizer.param_groups:
            factor = run.training.schedule.factor(step, STEPS)
            group["lr"] = run.training.optimizer.lr * factor
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.save_pretrained(root / f"{name}-plain")
    return Plain(losses, norms, tensors(root / f"{name}-plain"))


def check(decoders: Decoders, name: str) -> None:
    """Every layout trains the type as transformers does."""
    plain = decoders.plain(name)
    assert abs(plain.losses[0] - plain.losses[-1]) > 1e-3, "the steps must be felt"
    rounding = ROUNDING.get(name, 1e-5)
    for layout in decoders.layouts(name):
        checks = decoders.trained.seen(f"{name}-{layout}")[0]["report"]["checks"]
        assert checks["packing"] < 1e-5, checks
        if layout == "pipe2" and name in QUICK:
            assert max(checks["engine_loss"], checks["engine_grad_norm"]) < 1e-4, checks
        lines = decoders.trained.metrics(f"{name}-{layout}")
        for key, expected in (("loss", plain.losses), ("grad_norm", plain.norms)):
            found = [line[key] for line in lines]
            assert np.allclose(found, expected, rtol=rounding), (layout, key, found, expected)
        weights = decoders.weights(f"{name}-{layout}")
        assert weights.keys() == plain.weights.keys(), layout
        for tensor, value in weights.items():
            gap = float((value.double() - plain.weights[tensor].double()).abs().max())
            assert gap < rounding, (layout, tensor, gap)
