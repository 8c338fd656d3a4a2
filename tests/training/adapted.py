"""Runs with an adapter or frozen weights, and the same training on transformers' model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import easyllm.models.custom  # noqa: F401
from easyllm.data.dataset.rows import open_rows
from easyllm.stages import load
from easyllm.stages.base import Rank
from tests.models.small import save
from tests.support import merged, run_spec
from tests.training.conftest import GLOBAL_BATCH, PIPELINE, ZERO, Small, Trained, launch
from tests.training.test_layouts import by_document

STEPS = 4
NAMES = ("llama3", "smollm2", "qwen", "baichuan_13b")
"""Grouped queries; shared embeddings; packed matrices with biases and other names; ALiBi."""
LAYOUTS: dict[str, dict[str, Any]] = {
    "pipe2": {"_target_": PIPELINE, "zero_stage": 0},
    "pipe1": {"_target_": PIPELINE, "pipeline_stages": 1},
    "zero3": {"_target_": ZERO, "zero_stage": 3},
}
OTHERS = {
    "pipe2-zero1": {"_target_": PIPELINE},
    "zero0": {"_target_": ZERO, "zero_stage": 0},
    "zero2": {"_target_": ZERO, "zero_stage": 2},
    "recomputed": {"_target_": PIPELINE, "checkpoint_activations": True},
}
CHAIN = [LAYOUTS["pipe2"], LAYOUTS["zero3"], {"_target_": ZERO, "zero_stage": 0}]
"""Layouts that one run goes through: two of two ranks, then one of one."""
ADAPTER = {"_target_": "lora", "r": 4, "alpha": 8}
DROPPED = {**ADAPTER, "dropout": 0.2}
LR, CLIP = 3e-2, 0.2
FROZEN = {"edges": "model.layers.[03].*", "norms": r"re:.*norm\.weight"}


@dataclass(frozen=True)
class Adapted:
    """Folders of the models, and what two ranks and one made beside them."""

    small: Small
    two: Trained
    one: Trained


def case(
    small: Small, name: str, layout: dict[str, Any], ranks: int = 2, **training: Any
) -> dict[str, Any]:
    settings = {"steps": STEPS, "gradient_clipping": CLIP, "evaluate": {"fraction": 0.0},
                "adapter": ADAPTER, "optimizer": {"lr": LR}}  # fmt: skip
    return merged(small.config(name, layout, ranks), {"training": merged(settings, training)})


def launched(small: Small, root: Path) -> Adapted:
    """Every case, in two launches."""
    two: list[dict[str, Any]] = []
    one: list[dict[str, Any]] = []

    def add(name: str, config: dict[str, Any], to: list[dict[str, Any]] = two, **more: Any) -> None:
        to.append({"name": name, "config": config, **more})

    for name in NAMES:
        save(name, small.root / name)
        for layout, settings in LAYOUTS.items():
            add(f"{name}-{layout}", case(small, name, settings))
            if layout == "zero3" or name == "qwen":
                add(f"{name}-{layout}-fresh", case(small, name, settings, steps=0))
    for layout, settings in OTHERS.items():
        add(f"smollm2-{layout}", case(small, "smollm2", settings))
    for place, settings in enumerate(CHAIN):
        ranks, to = (2, two) if place < 2 else (1, one)
        stop = {"stop_at": (2 * place) * GLOBAL_BATCH + 1} if place < 2 else {}
        config = case(small, "smollm2", settings, ranks, steps=STEPS + 1)
        add(f"moved-{place}", config, to, run="moved", **stop)
    add("unmoved", case(small, "smollm2", LAYOUTS["zero3"], steps=STEPS + 1))
    for layout, settings in LAYOUTS.items():
        dropped = case(small, "smollm2", settings, adapter=DROPPED)
        add(f"whole-{layout}", dropped)
        add(f"stopped-{layout}", dropped, run=f"broken-{layout}", stop_at=GLOBAL_BATCH + 1)
        add(f"resumed-{layout}", dropped, run=f"broken-{layout}")
    other = case(small, "smollm2", LAYOUTS["zero3"], adapter={**DROPPED, "r": 8})
    add("other-rank", other, run="broken-zero3")
    weights = case(small, "smollm2", LAYOUTS["zero3"], adapter=None, resume="weights")
    add("other-kind", weights, run="broken-zero3")
    half = {"model": {"dtype": "bfloat16"}}
    for layout in ("pipe2-zero1", "zero2"):
        add(f"bf16-{layout}", merged(case(small, "smollm2", OTHERS[layout]), half))
    chosen = {**ADAPTER, "targets": ["q_proj", "re:model.layers.[23].mlp.down_proj"]}
    add("chosen", case(small, "llama3", LAYOUTS["pipe2"], adapter=chosen))
    for layout, settings in (LAYOUTS | OTHERS).items():
        frozen = case(small, "smollm2", settings, adapter=None, freeze=FROZEN)
        add(f"frozen-{layout}", frozen)
    tied = {"tied": "*embed_tokens*"}
    add("tied-zero1", case(small, "smollm2", OTHERS["pipe2-zero1"], adapter=None, freeze=tied))
    less = case(small, "smollm2", LAYOUTS["zero3"], adapter=None, freeze=tied, steps=STEPS + 1)
    add("thawed", less, run="frozen-zero3")
    return Adapted(small, launch(root, 2, two), launch(root, 1, one))


def spec(adapted: Adapted, run: str, config: dict[str, Any], **export: Any) -> Any:
    return run_spec(adapted.two.root / run, merged(config, {"export": export}))


def exported(adapted: Adapted, name: str, run: str, **export: Any) -> Path:
    """The export of a run's newest checkpoint."""
    chosen = spec(adapted, run, case(adapted.small, name, LAYOUTS["pipe2"]), **export)
    return Path(load("export").work(chosen, Rank())["folder"])


def reference(adapted: Adapted, name: str, adapter: Path | None = None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(adapted.small.root / name, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter, is_trainable=True) if adapter else model


@cache
def peft_losses(adapted: Adapted, name: str) -> list[float]:
    """Losses of peft's model under torch's AdamW, from the adapter that our runs begin with."""
    folder = exported(adapted, name, f"{name}-zero3-fresh", adapter="adapter")
    network = reference(adapted, name, folder)
    return train(network, adapted.small, name, [p for p in network.parameters() if p.requires_grad])


def train(network: Any, small: Small, name: str, parameters: list[torch.Tensor]) -> list[float]:
    run = run_spec(small.root, case(small, name, LAYOUTS["zero3"]))
    rows = open_rows(run)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
    )
    found = []
    for step in range(STEPS):
        picked = [rows.sample(step * GLOBAL_BATCH + place) for place in range(GLOBAL_BATCH)]
        loss = by_document(network, picked)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        for group in optimizer.param_groups:
            group["lr"] = LR * run.training.schedule.factor(step, STEPS)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def losses(trained: Trained, case: str, run: str = "") -> list[float]:
    return [line["loss"] for line in trained.metrics(case, run)]
