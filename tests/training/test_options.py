"""Ways to the same losses: fused updates, offloaded states, some activations recomputed."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from easyllm.errors import UserError
from easyllm.launchers.ranks import FEW_THREADS
from easyllm.models.adapted import adapted
from easyllm.models.families import Llama
from easyllm.parallelism import world
from easyllm.parallelism.layouts import Pipeline
from easyllm.spec.checks import problems
from easyllm.spec.model.dimensions import state_bytes
from easyllm.training.optimizers import AdamW
from tests.support import LLAMA, merged, run_spec
from tests.training.conftest import (
    GLOBAL_BATCH,
    PIPELINE,
    ZERO,
    Small,
    Trained,
    launch,
)
from tests.training.test_layouts import check_losses

FUSED = {"training": {"optimizer": {"fused": True}}}
LOSS = {"training": {"loss": "linear_cross_entropy"}}
HALF = {"model": {"dtype": "bfloat16"}}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fused-zero0": ({"_target_": ZERO, "zero_stage": 0}, FUSED),
    "fused-zero3": ({"_target_": ZERO, "zero_stage": 3}, FUSED),
    "fused-pipe2": ({"_target_": PIPELINE}, FUSED),
    "loss-pipe2": ({"_target_": PIPELINE}, LOSS),
    "loss-zero2": ({"_target_": ZERO, "zero_stage": 2}, LOSS),
    "second-pipe2": ({"_target_": PIPELINE, "checkpoint_activations": 2}, {}),
    "third-zero3": ({"_target_": ZERO, "zero_stage": 3, "checkpoint_activations": 3}, {}),
    "offload-zero1": ({"_target_": ZERO, "zero_stage": 1, "offload": "optimizer"}, {}),
    "offload-zero2": ({"_target_": ZERO, "zero_stage": 2, "offload": "optimizer"}, FUSED),
    "offload-zero3": ({"_target_": ZERO, "zero_stage": 3, "offload": "optimizer"}, {}),
    "offload-all": ({"_target_": ZERO, "zero_stage": 3, "offload": "parameters"}, FUSED),
}
"""By name: the layout, and what else is not as ever."""
BFLOAT16 = [
    "fused-pipe2",
    "loss-pipe2",
    "loss-zero2",
    "fused-zero3",
    "offload-zero2",
    "offload-all",
]
REDUCED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "zero0": ({"_target_": ZERO, "zero_stage": 0}, {}),
    "zero1": ({"_target_": ZERO, "zero_stage": 1}, HALF),
    "zero1-offload": ({"_target_": ZERO, "zero_stage": 1, "offload": "optimizer"}, HALF),
    "zero2": ({"_target_": ZERO, "zero_stage": 2}, HALF),
    "zero3": ({"_target_": ZERO, "zero_stage": 3}, HALF),
    "pipe1": ({"_target_": PIPELINE, "pipeline_stages": 1}, HALF),
}
"""Two replicas, in which gradients are added up in each way that DeepSpeed has."""
ROUNDED = ("zero1", "zero2", "zero3")
"""Those that are told, too, to do it in bfloat16."""
TUNED: dict[str, dict[str, Any]] = {
    "zero2": {
        "overlap_comm": True,
        "reduce_bucket_size": 5000,
        "allgather_bucket_size": 4000.0,
        "use_multi_rank_bucket_allreduce": False,
    },
    "zero3": {
        "overlap_comm": False,
        "reduce_bucket_size": 5000,
        "sub_group_size": 3000,
        "stage3_prefetch_bucket_size": 0,
        "stage3_param_persistence_threshold": 0,
        "stage3_max_live_parameters": 1000,
        "stage3_max_reuse_distance": 0,
    },
}
"""DeepSpeed's own settings, laid over a layout."""
COMPILED = {
    "pipe2": {"_target_": PIPELINE},
    "zero2-recomputed": {"_target_": ZERO, "zero_stage": 2, "checkpoint_activations": True},
}


@pytest.fixture(scope="session")
def optional(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    cases: list[dict[str, Any]] = []
    for name, (layout, over) in OPTIONS.items():
        config = merged(small.config("untied", layout, 2), over)
        cases.append({"name": name, "config": config})
    tied = merged(small.config("tied", {"_target_": PIPELINE}, 2), LOSS)
    cases.append({"name": "tied-loss-pipe2", "config": tied})
    for name in BFLOAT16:
        layout, over = OPTIONS[name]
        config = merged(merged(small.config("untied", layout, 2), over), HALF)
        cases.append({"name": f"bf16-{name}", "config": config})
    one = {"training": {"steps": 1, "gradient_clipping": 0, "evaluate": {"fraction": 0}}}
    for name, (layout, over) in REDUCED.items():
        layout = {**layout, "global_batch_size": 4}
        for dtype in ({}, {"reduce_dtype": "bfloat16"}) if name in ROUNDED else ({},):
            config = merged(merged(small.config("untied", {**layout, **dtype}, 2), over), one)
            cases.append({"name": f"reduced-{name}-{len(dtype)}", "config": config})
    for name, settings in TUNED.items():
        layout = {"_target_": ZERO, "zero_stage": int(name[4])}
        layout["deepspeed"] = {"zero_optimization": settings}
        cases.append({"name": f"tuned-{name}", "config": small.config("untied", layout, 2)})
    for stage in (1, 3):
        layout = {"_target_": ZERO, "zero_stage": stage}
        plain = merged(small.config("untied", layout, 2), HALF)
        cases.append({"name": f"bf16-zero{stage}", "config": plain})
    for place, (layout, over) in enumerate([OPTIONS["offload-zero3"], OPTIONS["fused-pipe2"]]):
        config = merged(small.config("untied", layout, 2), over)
        stop = {} if place else {"stop_at": GLOBAL_BATCH + 1}
        cases.append({"name": f"moved-{place}", "run": "moved", "config": config, **stop})
    return launch(tmp_path_factory.mktemp("optional"), 2, cases)


@pytest.mark.parametrize("option", OPTIONS)
def test_options_change_no_loss(small: Small, optional: Trained, option: str) -> None:
    check_losses(small, optional, "untied", option, run=option)


def test_a_tied_head_is_taken_into_the_loss(small: Small, optional: Trained) -> None:
    check_losses(small, optional, "tied", "tied-loss-pipe2", run="tied-loss-pipe2")


def test_options_are_at_work(optional: Trained) -> None:
    def told(option: str) -> list[Any]:
        return [seen["built"] for seen in optional.seen(option)]

    rest: dict[str, Any] = {"recomputed": [], "compiled": []}
    states, everything = ["optimizer"], ["optimizer", "parameters"]
    assert told("offload-zero1") == [{"offloaded": states, "fused": None, **rest}] * 2
    assert told("offload-all")[0] == {"offloaded": everything, "fused": True, **rest}
    for option in OPTIONS:
        shared = [seen["shared_cores"] for seen in optional.seen(option)]
        assert shared == [option.startswith("offload")] * 2
    layers = [built["recomputed"] for built in told("second-pipe2")]
    assert layers == [["model.layers.0"], ["model.layers.2"]]
    for option in ("fused-pipe2", "loss-pipe2", "loss-zero2"):
        assert optional.seen(option)[1]["logits"] == (option == "fused-pipe2")
    assert told("third-zero3")[1]["recomputed"] == ["model.layers.0", "model.layers.3"]


def test_options_change_on_the_way(small: Small, optional: Trained) -> None:
    """From states kept in memory, updated one by one, to a pipeline's fused ones."""
    assert min(optional.seen("moved-1", "moved")[0]["samples"]) == 2 * GLOBAL_BATCH
    check_losses(small, optional, "untied", "moved", run="moved")


@pytest.fixture(scope="session")
def compiled(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    cases = []
    for name, layout in COMPILED.items():
        config = small.config("untied", layout, 2)
        cases.append({"name": name, "config": merged(config, {"model": {"compile": True}})})
    return launch(tmp_path_factory.mktemp("compiled"), 2, cases)


@pytest.mark.slow
@pytest.mark.parametrize("layout", COMPILED)
def test_compiled_layers_train_the_same(small: Small, compiled: Trained, layout: str) -> None:
    check_losses(small, compiled, "untied", layout, run=layout)
    assert compiled.seen(layout)[0]["built"]["compiled"][0] == "model.layers.0"


@pytest.mark.parametrize("option", BFLOAT16)
def test_bfloat16_keeps_its_fp32_weights(optional: Trained, option: str) -> None:
    plain = "bf16-zero3" if option in ("fused-zero3", "offload-all") else "bf16-zero1"
    expected = [line["loss"] for line in optional.metrics(plain)]
    found = [line["loss"] for line in optional.metrics(f"bf16-{option}")]
    assert found == pytest.approx(expected, abs=4e-3)


@pytest.mark.parametrize("layout", REDUCED)
def test_replicas_add_gradients_up_in_float32_unless_told(optional: Trained, layout: str) -> None:
    """Of two bfloat16 numbers few have a sum that bfloat16 holds."""
    for rank in (0, 1):
        seen = optional.seen(f"reduced-{layout}-0")[rank]
        assert seen["reduced"] == ["float32"] and seen["rounded"] < 0.6
        if layout in ROUNDED:
            seen = optional.seen(f"reduced-{layout}-1")[rank]
            assert seen["reduced"] == ["bfloat16"] and seen["rounded"] == 1.0


@pytest.mark.parametrize("name", TUNED)
def test_settings_of_deepspeeds_change_no_loss(small: Small, optional: Trained, name: str) -> None:
    check_losses(small, optional, "untied", name, run=f"tuned-{name}")
    read = json.loads((optional.root / f"tuned-{name}/run/deepspeed.json").read_text("utf-8"))
    zero = {key.removeprefix("stage3_"): value for key, value in TUNED[name].items()}
    assert {key: read["zero_config"][key] for key in zero} == zero
    # the table of docs/deepspeed.md
    expected = {
        "gradient_clipping": 0.2, "communication_data_type": "torch.float32",
        "grad_accum_dtype": "fp32", "gradient_allreduce_op": "mean", "prescale_gradients": False,
        "gradient_predivide_factor": 1.0, "keep_in_fp32_modules": "auto", "buffer_dtype": None,
        "zero_force_ds_cpu_optimizer": False,
    }  # fmt: skip
    assert {key: read[key] for key in expected} == expected
    assert not read["timers_config"]["enabled"] and not read["float16_config"]["enabled"]
    assert read["bfloat16_config"]["check_grad_overflow"]


def test_what_is_offloaded_is_updated_by_the_machines_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(world, "default_workers", lambda: 12)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    try:
        for told, threads in (({}, 1), ({FEW_THREADS: "1"}, 3)):
            torch.set_num_threads(1)
            with monkeypatch.context() as patched:
                for name, value in told.items():
                    patched.setenv(name, value)
                world.share_cores()
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_fused_update_is_the_same_update() -> None:
    torch.manual_seed(2)
    first = [torch.randn(7, 5, requires_grad=True), torch.randn(5, requires_grad=True)]
    second = [tensor.detach().clone().requires_grad_() for tensor in first]
    for fused, tensors in ((None, first), (True, second)):
        groups = [{"params": [t], "decay": t.ndim > 1} for t in tensors]
        optimizer = AdamW(fused=fused, lr=0.1).build(groups)
        torch.manual_seed(3)
        for _ in range(10):
            for tensor in tensors:
                tensor.grad = torch.randn_like(tensor)
            optimizer.step()
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_layers_that_are_recomputed() -> None:
    all_ = [0, 1, 2, 3, 4]
    for given, expected in ((False, []), (True, all_), (1, all_), (2, [0, 2, 4]), (3, [0, 3])):
        layout = Pipeline(checkpoint_activations=given)
        assert [layer for layer in range(5) if layout.recomputes(layer)] == expected


def test_offload_wants_what_is_split(tmp_path: Any) -> None:
    def told(**layout: Any) -> list[str]:
        model = {"dtype": "float32"}
        run = run_spec(tmp_path, {"parallelism": {"_target_": ZERO, **layout}, "model": model})
        return [f"{p.key}={p.value} {p.remedy}" for p in problems(run)]

    assert told(zero_stage=0, offload="optimizer") == [
        "parallelism.offload=optimizer give parallelism.zero_stage=1, 2 or 3"
    ]
    assert told(zero_stage=2, offload="parameters") == [
        "parallelism.offload=parameters give parallelism.zero_stage=3"
    ]
    assert told(zero_stage=3, offload="parameters") == told(zero_stage=1, offload="optimizer") == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"gradient_clipping": 0.5}, "gradient_clipping=0.5 follows from training.gradient_clip"),
        ({"communication_data_type": "bf16"}, "data_type=bf16 follows from parallelism.reduce_dt"),
        ({"bf16": {"enabled": False}}, "bf16.enabled=False follows from model.dtype"),
        ({"zero_optimization": {"stage": 2}}, "stage=2 follows from parallelism.zero_stage"),
        ({"zero_optimization.stage": 2}, "stage=2 follows from parallelism.zero_stage"),
        ({"zero_optimization": {"offload_param": {"device": "nvme"}}}, "parallelism.offload"),
        ({"zero_optimization": {"zero_quantized_gradients": True}}, "sent in fewer bits"),
        ({"prescale_gradients": True}, "would not be the mean over the trained tokens"),
        ({"zero_optimization": {"overlap_com": True}}, "zero_optimization.overlap_comm?"),
        ({"zero_optimization": True}, "is not a DeepSpeed setting that can be given here"),
        ({"zero_optimization": {"overlap_comm": 1}}, "overlap_comm=1 must be true or false"),
        ({"zero_optimization": {"reduce_bucket_size": 0.5}}, "must be a number of elements"),
        ({"zero_optimization": {"allgather_bucket_size": 7}}, "allgather_bucket_size=8"),
    ],
)
def test_what_may_not_be_laid_over(tmp_path: Any, settings: dict[str, Any], told: str) -> None:
    for target in (ZERO, PIPELINE):
        layout = {"_target_": target, "deepspeed": settings}
        model, ranks = {"dtype": "float32"}, {"devices_per_node": 2}
        run = run_spec(tmp_path, {"parallelism": layout, "model": model, "hardware": ranks})
        (problem,) = problems(run)
        assert problem.key.startswith("parallelism.deepspeed.")
        assert told in f"{problem.key}={problem.value} {problem.message} {problem.remedy}"


def test_what_is_offloaded_takes_no_device_memory(tmp_path: Any) -> None:
    shape = Llama().shape(LLAMA)

    def need(offload: str | None, trained: float = 1.0) -> float:
        layout = {"_target_": ZERO, "zero_stage": 3, "offload": offload}
        run = run_spec(tmp_path, {"parallelism": layout, "model": {"dtype": "bfloat16"}})
        return state_bytes(run, shape, trained) / shape.parameters

    assert [need(None), need(None, 0.5), need("optimizer"), need("parameters")] == [18, 10, 2, 0]


@pytest.mark.parametrize(
    ("training", "told"),
    [
        ({"freeze": {"low": "layers.0"}}, "training.freeze.low=layers.0: matches no parameter"),
        ({"freeze": {"all": "*"}}, "freezes all 21 parameters; freeze less"),
        ({"adapter": {"_target_": "lora", "targets": ["c_attn"]}}, "targets=c_attn: matches no"),
    ],
)
def test_patterns_for_a_model_that_is_known_late(tmp_path: Any, training: Any, told: str) -> None:
    """Of a hub id nothing is known before its configuration is there, on the ranks."""
    layers = Llama().layers(LlamaConfig(**LLAMA), "sdpa")
    with pytest.raises(UserError, match=re.escape(told)):
        adapted(run_spec(tmp_path, {"training": training}), layers)
