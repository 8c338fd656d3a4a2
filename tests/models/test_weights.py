"""Weights on disk: what is read, what is refused, how shards are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from easyllm.errors import UserError
from easyllm.models.layers import llama_layers, parameter_shapes
from easyllm.models.weights import (
    INDEX,
    WeightFiles,
    plan_shards,
    shard_name,
    write_index,
    write_shard,
)
from tests.support import LLAMA

CONFIG = LlamaConfig(**LLAMA)
SHAPES = parameter_shapes(llama_layers(CONFIG, "sdpa"))
HEAD = "lm_head.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    LlamaForCausalLM(CONFIG).save_pretrained(tmp_path, max_shard_size="80KB")
    assert (tmp_path / INDEX).exists()
    return tmp_path


def test_only_what_is_asked_for_is_read(folder: Path) -> None:
    files = WeightFiles(folder)
    assert files.bytes_read == 0
    tensor = files.tensor(HEAD, SHAPES[HEAD])
    assert files.bytes_read == tensor.nbytes == SHAPES[HEAD].numel() * 4


def test_shards_are_read_back_by_transformers(folder: Path, tmp_path: Path) -> None:
    files = WeightFiles(folder)
    tensors = {name: files.tensor(name, shape) for name, shape in SHAPES.items()}
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    plan = plan_shards(sizes, 70_000)
    assert [name for shard in plan for name in shard] == list(SHAPES)
    assert all(sum(sizes[name] for name in shard) <= 70_000 for shard in plan)
    made = tmp_path / "made"
    made.mkdir()
    CONFIG.save_pretrained(made)
    named = {}
    for number, names in enumerate(plan):
        file = shard_name(number, len(plan))
        write_shard(made / file, {name: tensors[name] for name in names})
        named |= dict.fromkeys(names, file)
    write_index(made, named, sizes)
    for name, parameter in LlamaForCausalLM.from_pretrained(made).named_parameters():
        assert torch.equal(parameter, tensors[name])


def test_a_tensor_larger_than_a_shard_stands_alone() -> None:
    assert plan_shards({"a": 1, "b": 9, "c": 1, "d": 1}, 3) == [["a"], ["b"], ["c", "d"]]


def test_a_missing_tensor_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no tensor model\.layers\.2\.mlp\.up_proj\.weight"):
        WeightFiles(folder).tensor("model.layers.2.mlp.up_proj.weight", torch.Size([64, 32]))


def test_a_missing_head_hints_at_tied_embeddings(tmp_path: Path) -> None:
    tied = LlamaConfig(**{**LLAMA, "tie_word_embeddings": True})
    LlamaForCausalLM(tied).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="tie_word_embeddings=true"):
        WeightFiles(tmp_path).tensor(HEAD, SHAPES[HEAD])


def test_another_shape_is_told_with_both(folder: Path) -> None:
    with pytest.raises(UserError, match=r"\(512, 32\).*\(512, 16\)"):
        WeightFiles(folder).tensor(HEAD, torch.Size([512, 16]))


def test_tensors_without_a_place_are_refused(folder: Path) -> None:
    files = WeightFiles(folder)
    files.check(SHAPES)
    fewer = parameter_shapes(llama_layers(LlamaConfig(**{**LLAMA, "num_hidden_layers": 1}), "sdpa"))
    with pytest.raises(UserError, match=r"9 tensors .*model\.layers\.1.*model\.init=random"):
        files.check(fewer)


def test_tied_models_may_repeat_the_head_in_their_files(folder: Path) -> None:
    expected = [name for name in SHAPES if name != HEAD]
    files = WeightFiles(folder)
    files.check(expected, [HEAD])
    with pytest.raises(UserError, match="lm_head"):
        files.check(expected)


@pytest.mark.parametrize("broken", ["absent", "cut", "not json"])
def test_files_that_cannot_be_read_are_a_users_mistake(tmp_path: Path, broken: str) -> None:
    if broken == "cut":
        (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0")
    if broken == "not json":
        (tmp_path / INDEX).write_text("{", "utf-8")
    with pytest.raises(UserError, match="no readable model"):
        WeightFiles(tmp_path)


def test_written_files_are_readable_by_others(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.safetensors", {"a": torch.arange(6.0).view(2, 3).T})
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o644
    assert torch.equal(load_file(tmp_path / "a.safetensors")["a"], torch.arange(6.0).view(2, 3).T)


def test_the_index_counts_bytes(tmp_path: Path) -> None:
    write_index(tmp_path, {"a": shard_name(0, 2), "b": shard_name(1, 2)}, {"a": 4, "b": 8})
    index = json.loads((tmp_path / INDEX).read_text("utf-8"))
    assert index["metadata"]["total_size"] == 12
    assert index["weight_map"] == {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
    }
