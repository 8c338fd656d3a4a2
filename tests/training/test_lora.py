"""LoRA on ranks: as peft trains it on transformers' model, saved, moved, exported, frozen."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from easyllm.errors import UserError
from easyllm.models import source, tensor_files
from easyllm.stages import load
from easyllm.stages.base import Rank
from easyllm.training.checkpointing.checkpoints import newest
from tests.support import merged
from tests.training.adapted import (
    ADAPTER,
    LAYOUTS,
    NAMES,
    OTHERS,
    STEPS,
    Adapted,
    case,
    exported,
    launched,
    losses,
    peft_losses,
    reference,
    spec,
    train,
)
from tests.training.conftest import GLOBAL_BATCH, Small


@pytest.fixture(scope="session")
def adapted(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return launched(small, tmp_path_factory.mktemp("adapted"))


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
    said = f"Stopped: stopped by a signal; saved at step 2 of {STEPS}"
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
    assert "holds an adapter, but a model is to be trained" in told
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
    for layout in ("native", "canonical"):
        if layout == "canonical" and name == "baichuan_13b":
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
