"""Decoders of transformers: their outlines, names and layouts of their files, and what is
refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoConfig
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from easyllm.__main__ import main
from easyllm.cli.library import shipped_folder
from easyllm.models.config import hf_config
from easyllm.models.decoders import outlines
from easyllm.models.decoders.balance import Balance, expert_load
from easyllm.models.decoders.describe import UNTRAINED, known_types
from easyllm.models.decoders.family import Decoder
from easyllm.models.decoders.published import PublishedMapping
from easyllm.models.decoders.skeleton import Skeleton
from easyllm.models.layers import tensor_shapes
from easyllm.models.weights import WeightFiles
from tests.models.decoders import SHAPE, published, save, small
from tests.models.small import tensors
from tests.support import run_spec

UNCUT = {"deepseek_v4", "gemma3n_text", "glm_moe_dsa", "hy_v4"}


BILLIONS = {
    "deepseek_v2_lite": 15.7, "gemma3_27b": 27.0, "gpt_oss_20b": 20.9, "ministral3_8b": 8.5,
    "mixtral_8x7b": 46.7, "olmo3_7b": 7.3, "qwen3_30b_a3b": 30.5, "qwen3_5_9b": 9.0,
    "smollm3_3b": 3.1,
}  # fmt: skip
"""Published parameters of the groups, without parts for images."""
ACTIVE = {"qwen3_30b_a3b": 3.3, "mixtral_8x7b": 12.9, "deepseek_v2_lite": 2.7}
"""Published parameters that a token uses."""


@pytest.mark.parametrize("group", BILLIONS)
def test_published_dimensions_give_published_sizes(group: str) -> None:
    text = (shipped_folder() / "model" / f"{group}.yaml").read_text("utf-8")
    config = yaml.safe_load(text)["config"]
    family = Decoder(type=config["model_type"])
    assert set(config) <= family.config_keys
    count = sum(prod(s) for layer in family.param_specs(config) for s in layer.parameters.values())
    assert count / 1e9 == pytest.approx(BILLIONS[group], rel=0.02)
    if group in ACTIVE:
        assert family.active(config) * count / 1e9 == pytest.approx(ACTIVE[group], rel=0.05)
    made = family.shaped(config, replace(SHAPE, tied=config["tie_word_embeddings"]))
    assert family.shape(made).layers == 4
    assert sum(spec.decoder for spec in family.layers(AutoConfig.for_model(**made), "eager")) == 4


def test_the_types_that_are_known() -> None:
    assert len(known_types()) == 76
    assert {"qwen3_5_text", "qwen3_moe", "gpt_oss", "gemma3_text", "gemma4_text", "glm4", "mixtral",
            "ministral3", "olmo3", "granite", "smollm3", "phi", "deepseek_v2"} <= set(
        known_types()
    )  # fmt: skip


@pytest.mark.parametrize("name", known_types())
def test_files_are_read_and_written_as_transformers_does(tmp_path: Path, name: str) -> None:
    """Without a bit's difference, a layer at a time."""
    folder = save(name, tmp_path)
    before = tensors(folder)
    skeleton = Skeleton.of(AutoConfig.from_pretrained(folder), "eager")
    names = PublishedMapping(skeleton.model)
    files = WeightFiles(folder, names)
    shapes = tensor_shapes(skeleton.specs())
    shared = {f"{s.name}.weight": f"{s.tied_to}.weight" for s in skeleton.specs() if s.tied_to}
    assert files.problems(shapes, shapes, shared) == []
    after: dict[str, Any] = {}
    for spec in skeleton.specs():
        own = tensor_shapes([spec])
        after |= names.stored({name: files.tensor(name, shape) for name, shape in own.items()})
    assert after.keys() == before.keys()
    for tensor, value in before.items():
        assert after[tensor].dtype == value.dtype and torch.equal(after[tensor], value), tensor
    assert bool(Decoder(type=name).uncut(published(folder))) == (name in UNCUT)


def test_the_layers_are_known_without_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a process of its own, once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = json.dumps(small("qwen3_moe"))
    found = outlines.read(outlines.in_another_process(config))
    outlines.cached.cache_clear()
    assert found == outlines.outline(small("qwen3_moe"))
    assert found.shape is not None and found.shape.layers == 4 and 0.3 < found.active < 1
    for file in (tmp_path / "easyllm" / "outlines").iterdir():
        file.write_text("{", "utf-8")  # damaged, it is made again
    outlines.cached.cache_clear()
    assert found == outlines.outline(small("qwen3_moe"))


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("hrm_text", "its plan in transformers names modules that it does not have"),
        ("phi4_multimodal", "it takes images and sound besides text"),
        ("gemma3", "its text part alone, of type gemma3_text, can be trained"),
        ("bert", "it is not a decoder whose layers transformers names in order"),
        ("qwen3_meo", "has no models of this type"),
    ],
)
def test_types_that_are_not_trained(model_type: str, said: str) -> None:
    why, known = Decoder(type=model_type).unusable({})
    assert said in why and "qwen3_moe" in known


@pytest.mark.parametrize(
    ("words", "key", "said"),
    [
        (["model.config.num_expert=4"], "model.config.num_expert", "num_experts"),
        (["model.config.num_experts=none"], "model.config", "makes no qwen3_moe model"),
        (["model.config.model_type=qwen3_meo"], "model.config.model_type", "qwen3_moe"),
        (["model.attention=flash_attention_2"], "model.attention", "sdpa or eager"),
        (["+recipe=gemma3_27b", "model.config.model_type=gemma3n_text",
          "model.family.type=gemma3n_text", "parallelism=pipeline"],
         "parallelism.pipeline_stages", "cannot be divided"),
        (["+recipe=demo", "model.config.model_type=gemma2", "model.family._target_=Decoder",
          "model.family.type=gemma2", "training.loss=linear_cross_entropy"],
         "training.loss", "scales or caps the logits"),
    ],
)  # fmt: skip
def test_mistakes_are_refused(
    words: list[str], key: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = [] if words[0].startswith("+recipe") else ["+recipe=qwen3_30b_a3b"]
    assert main([*recipe, "stages=[]", *words]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert key in told and said in told and "Traceback" not in told


def test_the_text_part_of_a_model_that_takes_images(tmp_path: Path) -> None:
    text = save("gemma3_text", tmp_path / "text")
    config = published(text)
    before = tensors(text)
    for number, prefix in enumerate(("language_model.model.", "model.language_model.")):
        folder = tmp_path / str(number)
        folder.mkdir()
        renamed = {prefix + name.removeprefix("model."): t for name, t in before.items()}
        images = {"vision_tower.weight": torch.ones(2, 2), "multi_modal_projector.w": torch.ones(2)}
        save_file({**renamed, **images}, folder / "model.safetensors", metadata={"format": "pt"})
        whole = {"model_type": "gemma3", "text_config": config, "vision_config": {}}
        (folder / "config.json").write_text(json.dumps(whole), "utf-8")
        run = run_spec(tmp_path, {"model": {"path": str(folder)}, "data": {"seq_len": 32}})
        made = hf_config(run)
        assert made.model_type == "gemma3_text"
        skeleton = Skeleton.of(made, "eager")
        files = WeightFiles(folder, PublishedMapping(skeleton.model))
        shapes = tensor_shapes(skeleton.specs())
        assert files.problems(shapes, shapes, {}) == []
        for name, shape in shapes.items():
            assert torch.equal(files.tensor(name, shape), before[name])


def test_the_page_has_every_type() -> None:
    page = (Path(__file__).parents[2] / "docs/decoder_types.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (yes|no: .*?) \| .* \| .* \|$", page, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(known_types())
    assert {name for name, cut in rows if cut != "yes"} == UNCUT
    assert all(f"| `{name}` |" in page for name in UNTRAINED)


def test_models_that_change_their_logits() -> None:
    """Granite divides them, Gemma 2 caps them. HY 4 reads the type of its head's matrix."""
    expectations = {"granite": True, "gemma2": True, "olmo3": False, "hy_v4": False}
    for name, expected in expectations.items():
        assert Decoder(type=name).changes_logits(small(name)) is expected


def test_what_ended_a_process_is_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said = outlines.in_another_process('{"model_type": ')
    assert isinstance(said, str) and "JSONDecodeError" in said
    monkeypatch.setattr(outlines, "in_process", lambda config: said)
    outlines.cached.cache_clear()
    assert said in outlines.outline(small("olmo3")).problem
    outlines.cached.cache_clear()
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("chosen", [1, 2])
def test_the_loss_over_routers_is_transformers(chosen: int) -> None:
    """Value and gradient, from the sums of two halves of the layers."""
    torch.manual_seed(0)
    layers = [torch.randn(17, 6, requires_grad=True) for _ in range(5)]
    expected = load_balancing_loss_func(tuple(layers), 6, chosen)
    expected.backward()
    gradients = [layer.grad for layer in layers]
    for layer in layers:
        layer.grad = None
    balance = Balance(0.01, 6, chosen)
    halves = [
        torch.stack([balance.sums(layer) for layer in part]).sum(dim=0)
        for part in (layers[:2], layers[2:])
    ]
    loss = balance.loss(halves[0] + halves[1])
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for layer, gradient in zip(layers, gradients, strict=True):
        torch.testing.assert_close(layer.grad, gradient, rtol=1e-5, atol=1e-9)


def test_the_load_of_experts() -> None:
    even, one = [5.0] * 4, [20.0, 0.0, 0.0, 0.0]
    assert expert_load([*even, *[0.0] * 4], 4) == pytest.approx(
        {"expert_share": 0.25, "expert_entropy": 1.0}
    )
    assert expert_load([*even, *one], 4) == pytest.approx(
        {"expert_share": 1.0, "expert_entropy": 0.5}
    )
