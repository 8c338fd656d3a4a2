"""What a run checks of itself: packed rows at its beginning, and the first step."""

from __future__ import annotations

from math import prod

import pytest
import torch

from easyllm.models.decoders.family import Decoder
from easyllm.training.checkpointing.checkpoints import newest
from easyllm.training.metrics.step_metrics import flops_per_token
from tests.models.decoders import published, save
from tests.models.small import tensors
from tests.support import merged
from tests.training.conftest import GLOBAL_BATCH, ZERO, Small, Trained, launch
from tests.training.decoders import LAYOUTS, case

CASES = {
    # first, so that the outline of the type is known before attention is sabotaged
    "adapter": ("olmo3", "pipe2", None,
                {"training": {"adapter": {"_target_": "easyllm.training.adapters.LoRA"}}}),
    "leak-pipe2": ("olmo3", "pipe2", "leak", {}),
    "leak-zero1": ("untied", "zero1", "leak", {}),
    "leak-unpacked": ("olmo3", "zero1", "leak", {"data": {"packing": "none"}}),
    "leak-unchecked": ("olmo3", "zero1", "leak", {"training": {"check_packing": False}}),
    "loss-pipe2": ("olmo3", "pipe2", "loss", {}),
    "loss-zero1": ("untied", "zero1", "loss", {"training": {"check_engine": True}}),
    "experts-pipe2": ("qwen3_moe", "pipe2", None, {"hardware": {"peak_tflops": 1.0}}),
    "experts-asked": ("glm4_moe", "zero1", None, {"training": {"router_aux_loss": 0.5}}),
    "experts-unasked": ("glm4_moe", "zero1", None, {}),
    "logits": ("qwen3_5_text", "pipe2", None, {}),
    "no-logits": ("qwen3_5_text", "pipe2", None, {"training": {"loss": "linear_cross_entropy"}}),
    "experts-zero1": ("qwen3_moe", "zero1", None, {}),
    "experts-recomputed": ("qwen3_moe", "pipe2", None,
                           {"parallelism": {"checkpoint_activations": True}}),
    "buffers": ("glm4_moe", "zero1", None,
                {"model": {"dtype": "bfloat16"}, "training": {"steps": 1}}),
    "experts-off": ("qwen3_moe", "zero1", None, {"training": {"router_aux_loss": 0.0}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    for name in ("glm4_moe", "olmo3", "qwen3_5_text", "qwen3_moe"):
        if not (small.root / name).is_dir():
            save(name, small.root / name)
    cases = [
        {"name": name, "sabotage": how, "config": merged(case(small, model, LAYOUTS[layout]), over)}
        for name, (model, layout, how, over) in CASES.items()
    ]
    pipe, zero3 = LAYOUTS["pipe2"], {"_target_": ZERO, "zero_stage": 3}
    for run, layout in (("same", pipe), ("moved", zero3)):
        stopped, other = (case(small, "qwen3_moe", each) for each in (pipe, layout))
        cases += [
            {"name": f"{run}-0", "run": run, "config": stopped, "stop_at": GLOBAL_BATCH},
            {"name": f"{run}-1", "run": run, "config": other},
        ]
    return launch(tmp_path_factory.mktemp("checks"), 2, cases)


@pytest.mark.parametrize("name", ["leak-pipe2", "leak-zero1"])
def test_a_model_that_leaks_is_refused_before_the_first_step(trained: Trained, name: str) -> None:
    for seen in trained.seen(name):
        assert seen["error"].startswith("UserError: data.packing=best_fit: this model computes a")
        assert "give data.packing=none, or training.check_packing=false" in seen["error"]
        assert seen["checkpoints"] == []
    assert not (trained.root / name / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("name", ["leak-unpacked", "leak-unchecked"])
def test_without_packing_or_the_check_it_trains(trained: Trained, name: str) -> None:
    assert len(trained.metrics(name)) == 3
    assert "packing" not in trained.seen(name)[0]["report"].get("checks", {})


@pytest.mark.parametrize("name", ["loss-pipe2", "loss-zero1"])
def test_a_first_step_that_is_not_the_plain_models(trained: Trained, name: str) -> None:
    for seen in trained.seen(name):
        assert seen["error"].startswith("UserError: training.check_engine: the first step's loss")
        assert (
            "they differ by 0.01, where rounding explains 1e-04. Nothing was saved"
            in (seen["error"])
        )
        assert seen["checkpoints"] == []


def test_the_load_of_experts_is_in_the_metrics(trained: Trained) -> None:
    pipe, zero = (trained.metrics(f"experts-{layout}") for layout in ("pipe2", "zero1"))
    for line, other in zip(pipe, zero, strict=True):
        assert line["router_aux_loss"] == pytest.approx(other["router_aux_loss"], rel=1e-5)
        assert line["expert_share"] == pytest.approx(other["expert_share"], abs=0.02)
        assert 1 / 4 <= line["expert_share"] <= 1 / 2  # each of two choices of four experts
        assert 0.5 < line["expert_entropy"] <= 1
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
    for line, other in zip(trained.metrics("experts-recomputed"), pipe, strict=True):
        for key in ("loss", "grad_norm", "router_aux_loss", "expert_share"):
            assert line[key] == pytest.approx(other[key], rel=1e-5)
    off = trained.metrics("experts-off")
    assert not {"router_aux_loss", "expert_share", "expert_entropy"} & set(off[0])
    assert off[0]["loss"] == pytest.approx(
        zero[0]["loss"] - 0.001 * zero[0]["router_aux_loss"], rel=1e-5
    )


def test_types_without_a_loss_over_routers_get_it_when_asked(trained: Trained) -> None:
    asked, unasked = trained.metrics("experts-asked")[0], trained.metrics("experts-unasked")[0]
    assert "router_aux_loss" not in unasked and asked["router_aux_loss"] > 1
    expected = unasked["loss"] + 0.5 * asked["router_aux_loss"]
    assert asked["loss"] == pytest.approx(expected, rel=1e-5)


def test_mfu_counts_the_parameters_that_a_token_uses(small: Small, trained: Trained) -> None:
    line = trained.metrics("experts-pipe2")[0]
    config = published(small.root / "qwen3_moe")
    family = Decoder(type="qwen3_moe")
    shape, layers = family.shape(config), family.param_specs(config)
    sizes = [prod(size) for layer in layers for size in layer.parameters.values()]
    stacked = sum(prod(s) for layer in layers for s in layer.parameters.values() if len(s) == 3)
    used = sum(sizes) - stacked + stacked * 2 / 4  # of four experts a token uses two
    flops = flops_per_token(shape, int(used), 48)
    assert line["mfu"] == pytest.approx(line["tokens_per_second"] * flops / 2e12, rel=1e-6)


def test_the_loss_computes_the_head_of_a_model_that_is_run_by_document(trained: Trained) -> None:
    for line, other in zip(trained.metrics("no-logits"), trained.metrics("logits"), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
    assert [seen.get("logits") for seen in trained.seen("no-logits")] == [None, False]


def test_experts_resume_exactly_and_on_another_layout(trained: Trained) -> None:
    assert "stopped by a signal; saved at step 2 of 3" in trained.seen("same-0", "same")[0]["error"]
    losses = [line["loss"] for line in trained.metrics("experts-pipe2")]
    assert [line["loss"] for line in trained.metrics("same-1", "same")] == losses
    moved = [line["loss"] for line in trained.metrics("moved-1", "moved")]
    assert moved == pytest.approx(losses, rel=1e-5)


def test_buffers_are_not_rounded(small: Small, trained: Trained) -> None:
    """The bias by which GLM's routers choose is float32 in a bfloat16 model, as published."""
    trained.check("buffers")
    checkpoint, _ = newest(trained.root / "buffers" / "run" / "checkpoints")
    assert checkpoint is not None
    before, after = tensors(small.root / "glm4_moe"), tensors(checkpoint.weights)
    names = [name for name in after if name.endswith("e_score_correction_bias")]
    assert names and before.keys() == after.keys()
    for name in names:
        assert after[name].dtype == torch.float32 and torch.equal(after[name], before[name])
    assert after["lm_head.weight"].dtype == torch.bfloat16


def test_an_adapter_begins_with_the_plain_models_loss(trained: Trained) -> None:
    checks = trained.seen("adapter")[0]["report"]["checks"]
    assert checks["engine_loss"] < 1e-5 and "engine_grad_norm" not in checks
