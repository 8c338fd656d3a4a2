"""LoRA on ranks: as peft trains it on transformers' model, saved, moved, exported, frozen."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import easyllm.models.custom  # noqa: F401
from easyllm.data.rows import open_rows
from easyllm.errors import UserError
from easyllm.models import source, tensor_files
from easyllm.stages import load
from easyllm.stages.base import Rank
from easyllm.training.checkpoints import newest
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


@pytest.fixture(scope="session")
def adapted(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
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
    root = tmp_path_factory.mktemp("adapted")
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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_layout_trains_as_peft_does(adapted: Adapted, name: str, layout: str) -> None:
    expected = peft_losses(adapted, name)
    assert expected[0] - expected[-1] > 1e-2, "the steps must be felt for the test to see them"
    assert losses(adapted.two, f"{name}-{layout}") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("layout", OTHERS)
def test_other_layouts_train_the_same(adapted: Adapted, layout: str) -> None:
    expected = peft_losses(adapted, "smollm2")
    assert losses(adapted.two, f"smollm2-{layout}") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("layout", ["pipe2-zero1", "zero2"])
def test_bfloat16_trains_nearly_the_same(adapted: Adapted, layout: str) -> None:
    expected = peft_losses(adapted, "smollm2")
    assert losses(adapted.two, f"bf16-{layout}") == pytest.approx(expected, rel=2e-2)


def test_an_adapter_moves_to_another_layout(adapted: Adapted) -> None:
    expected = losses(adapted.two, "unmoved")
    assert len(expected) == STEPS + 1
    assert losses(adapted.one, "", "moved") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(adapted: Adapted, layout: str) -> None:
    stopped = adapted.two.seen(f"stopped-{layout}", f"broken-{layout}")
    said = f"Stopped: stopped by a signal; what it had is saved, step 2 of {STEPS}"
    assert [seen["error"] for seen in stopped] == [said] * 2
    resumed = adapted.two.seen(f"resumed-{layout}", f"broken-{layout}")
    assert min(resumed[0]["samples"]) == 2 * GLOBAL_BATCH
    whole = losses(adapted.two, f"whole-{layout}")
    assert losses(adapted.two, "", f"broken-{layout}") == whole
    assert whole != losses(adapted.two, f"smollm2-{layout}"), "dropout must be at work"


def test_another_adapter_is_not_taken_up(adapted: Adapted) -> None:
    (told, _) = (seen["error"] for seen in adapted.two.seen("other-rank", "broken-zero3"))
    assert "training.adapter.r: then 4, now 8" in told
    (told, _) = (seen["error"] for seen in adapted.two.seen("other-kind", "broken-zero3"))
    assert "holds an adapter, and a model is to be trained" in told
    (told, _) = (seen["error"] for seen in adapted.two.seen("thawed", "frozen-zero3"))
    assert "training.freeze.edges: then model.layers.[03].*, now nothing" in told


def logits(model: Any) -> torch.Tensor:
    torch.manual_seed(3)
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.randint(0, 400, (2, 40))).logits
    return found


@pytest.mark.parametrize("name", NAMES)
def test_exports_compute_what_was_trained(adapted: Adapted, name: str) -> None:
    """The adapter put on the base by peft, the merged model alone, in either layout."""
    run = f"{name}-pipe2"
    alone = exported(adapted, name, run, adapter="adapter")
    assert {file.name for file in alone.iterdir()} >= {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}  # fmt: skip
    config = json.loads((alone / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == str(adapted.small.root / name)
    assert len(config["target_modules"]) == 7
    expected = logits(reference(adapted, name, alone))
    assert not torch.allclose(expected, logits(reference(adapted, name)), atol=1e-2)
    for layout in ("native", "modern"):
        if layout == "modern" and name == "baichuan_13b":
            continue
        folder = exported(adapted, name, run, layout=layout)
        found = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        if layout == "native":
            published = load_file(adapted.small.root / name / "model.safetensors")
            assert load_file(folder / "model.safetensors").keys() == published.keys()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_fresh_adapter_changes_no_bit_of_the_model(adapted: Adapted, layout: str) -> None:
    folder = exported(adapted, "qwen", f"qwen-{layout}-fresh")
    before = load_file(adapted.small.root / "qwen" / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def kept(adapted: Adapted, run: str) -> Path:
    found, _ = newest(adapted.two.root / run / "run" / "checkpoints")
    assert found is not None
    return found.path


def names(files: Any) -> set[str]:
    return {name for file in files for name in load_file(file)}


def test_chosen_layers_alone_are_adapted(adapted: Adapted) -> None:
    config = merged(
        case(adapted.small, "llama3", LAYOUTS["pipe2"]),
        {"training": {"adapter": {"targets": ["q_proj", "re:model.layers.[23].mlp.down_proj"]}}},
    )
    folder = Path(
        load("export").work(spec(adapted, "chosen", config, adapter="adapter"), Rank())["folder"]
    )
    written = names([folder / "adapter_model.safetensors"])
    linears = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in written}
    wanted = {f"model.layers.{index}.self_attn.q_proj" for index in range(4)}
    assert linears == wanted | {f"model.layers.{index}.mlp.down_proj" for index in (2, 3)}
    network = reference(adapted, "llama3", folder)
    found = {name for name, p in network.named_parameters() if p.requires_grad}
    assert {name.replace(".default.", ".") for name in found} == written


@pytest.mark.parametrize("layout", [*LAYOUTS, "pipe2-zero1", "zero0", "zero2"])
def test_what_is_frozen_has_no_gradient_and_no_state(adapted: Adapted, layout: str) -> None:
    case = f"smollm2-{layout}"
    report = adapted.two.seen(case)[0]["report"]
    width, keys, inner = 32, 16, 64
    attention = 2 * (width + width) + 2 * (width + keys)
    trained = 4 * 4 * (attention + 3 * (width + inner))  # layers, rank
    assert report["trained_parameters"] == trained < report["parameters"] / 2
    seen = adapted.two.seen(case)
    split = layout != "zero0" and layout != "pipe2"
    stepped = sum(rank["stepped"] for rank in seen)
    if layout in ("zero0",):
        assert stepped == 2 * trained
    else:
        assert trained <= stepped <= trained + (256 if split else 0), "but for padding"
    for rank in seen:
        assert rank["frozen"] > 0 and rank["graded"] == []
    folder = kept(adapted, case)
    states = {name.split("/", 2)[2] for name in names((folder / "optimizer").iterdir())}
    weights = names((folder / "weights").glob("*.safetensors"))
    assert states == weights and len(weights) == 4 * 7 * 2
    assert all(".lora_" in name for name in weights)


@cache
def frozen_losses(adapted: Adapted) -> list[float]:
    network = reference(adapted, "smollm2").train()
    for name, parameter in network.named_parameters():
        out = name.startswith(("model.layers.0.", "model.layers.3.")) or "norm" in name
        parameter.requires_grad_(not out)
    return train(network, adapted.small, "smollm2",
                 [p for p in network.parameters() if p.requires_grad])  # fmt: skip


@pytest.mark.parametrize("layout", [*LAYOUTS, *OTHERS])
def test_the_rest_is_trained_where_some_is_frozen(adapted: Adapted, layout: str) -> None:
    expected = frozen_losses(adapted)
    assert losses(adapted.two, f"frozen-{layout}") == pytest.approx(expected, abs=1e-5)
    before = load_file(adapted.small.root / "smollm2" / "model.safetensors")
    files = (kept(adapted, f"frozen-{layout}") / "weights").glob("*.safetensors")
    after = {name: tensor for file in files for name, tensor in load_file(file).items()}
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {
        name
        for name in before
        if "norm" in name or name.startswith(("model.layers.0.", "model.layers.3."))
    }


def test_a_frozen_embedding_is_shared_by_both_ends(adapted: Adapted) -> None:
    network = reference(adapted, "smollm2").train()
    network.model.embed_tokens.weight.requires_grad_(False)
    parameters = [p for p in network.parameters() if p.requires_grad]
    expected = train(network, adapted.small, "smollm2", parameters)
    assert losses(adapted.two, "tied-zero1") == pytest.approx(expected, abs=1e-5)


def test_an_adapter_is_no_model_to_start_from(adapted: Adapted, tmp_path: Path) -> None:
    """Neither a checkpoint of one nor its export; nor is it exported by another run's spec."""
    weights = kept(adapted, "qwen-pipe2") / "weights"
    assert tensor_files.problems(weights) == [tensor_files.ALONE]
    with pytest.raises(UserError, match=r"holds an adapter without.*export\.adapter=merged"):
        source.folder(str(weights), tmp_path)
    alone = exported(adapted, "qwen", "qwen-pipe2", adapter="adapter")
    assert source.problem(str(alone)) == tensor_files.ALONE
    other = case(adapted.small, "qwen", LAYOUTS["pipe2"], adapter={**ADAPTER, "alpha": 9})
    with pytest.raises(UserError, match=r"run:\n  training\.adapter\.alpha: then 8\.0, now 9"):
        load("export").work(spec(adapted, "qwen-pipe2", other), Rank())
    model = case(adapted.small, "smollm2", LAYOUTS["pipe2"], adapter=None)
    with pytest.raises(UserError, match=r"holds a model; give export\.adapter=merged"):
        load("export").work(spec(adapted, "tied-zero1", model, adapter="adapter"), Rank())


def test_other_weights_under_an_adapter_are_told(adapted: Adapted, tmp_path: Path) -> None:
    """A copy is the same; the same files trained further are not."""
    folder = adapted.small.root / "llama3"
    copy = shutil.copytree(folder, tmp_path / "copy")
    before = tensor_files.identity(folder)
    found, _ = newest(adapted.two.root / "llama3-pipe2" / "run" / "checkpoints")
    assert found is not None and found.trained_with["model.weights"] == before
    assert tensor_files.identity(copy) == before
    tensors = load_file(copy / "model.safetensors")
    changed = {name: tensor + 1e-3 for name, tensor in tensors.items()}
    save_file(changed, copy / "model.safetensors", metadata={"format": "pt"})
    assert (copy / "model.safetensors").stat().st_size == (
        folder / "model.safetensors"
    ).stat().st_size
    assert tensor_files.identity(copy) != before
