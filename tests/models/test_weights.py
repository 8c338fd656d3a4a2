"""Weights on disk: what is read, what is refused, how shards are written."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from easyllm.errors import UserError
from easyllm.models import tensor_files
from easyllm.models.families import Llama
from easyllm.models.layers import tensor_shapes
from easyllm.models.tensor_files import INDEX
from easyllm.models.weight_mapping import RowMapping
from easyllm.models.weights import (
    WeightFiles,
    plan_shards,
    shard_name,
    write_index,
    write_shard,
)
from tests.support import LLAMA

CONFIG = LlamaConfig(**LLAMA)
SHAPES = tensor_shapes(Llama().layers(CONFIG, "sdpa"))
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


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


def test_tensors_without_a_place_are_listed(folder: Path) -> None:
    files = WeightFiles(folder)
    assert files.problems(SHAPES, SHAPES, {}) == []
    fewer = tensor_shapes(Llama().layers(LlamaConfig(**{**LLAMA, "num_hidden_layers": 1}), "sdpa"))
    (told,) = files.problems(fewer, fewer, {})
    assert "9 tensors" in told and "model.layers.1." in told


def test_tied_models_may_repeat_the_head_in_their_files(folder: Path) -> None:
    expected = {name: shape for name, shape in SHAPES.items() if name != HEAD}
    tensors = {n: p.detach() for n, p in LlamaForCausalLM(CONFIG).state_dict().items()}
    one = folder / "one"
    one.mkdir()
    save_file({**tensors, HEAD: tensors[EMBEDDING].clone()}, one / "model.safetensors")
    files = WeightFiles(one)
    assert files.problems(expected, expected, {HEAD: EMBEDDING}) == []
    (told,) = files.problems(expected, expected, {})
    assert "lm_head" in told


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_tied_pair_of_two_tensors_is_refused(folder: Path, kind: str) -> None:
    """transformers 5 loads such a model untied, whatever its configuration says, and 4 tied."""
    expected = {name: shape for name, shape in SHAPES.items() if name != HEAD}
    if kind == "bin":
        folder = folder / "bin"
        folder.mkdir()
        torch.save(LlamaForCausalLM(CONFIG).state_dict(), folder / "pytorch_model.bin")
    files = WeightFiles(folder)
    (told,) = files.problems(expected, expected, {HEAD: EMBEDDING})
    assert f"ties {HEAD} to {EMBEDDING}" in told
    assert "model.overrides.tie_word_embeddings=false" in told
    elsewhere = {name: shape for name, shape in expected.items() if name != EMBEDDING}
    assert files.problems(elsewhere, expected, {HEAD: EMBEDDING}) == [], "another rank tells it"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("absent", "has no model.safetensors"),
        ("cut", "model.safetensors cannot be read: it has 3 bytes only"),
        ("not json", "model.safetensors.index.json cannot be read"),
    ],
)
def test_files_that_cannot_be_read_are_a_users_mistake(
    tmp_path: Path, broken: str, said: str
) -> None:
    if broken == "cut":
        (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0")
    if broken == "not json":
        (tmp_path / INDEX).write_text("{", "utf-8")
    with pytest.raises(UserError, match=said):
        WeightFiles(tmp_path)


def shard_of(folder: Path, tensor: str) -> Path:
    named = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"]
    return folder / named[tensor]


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize("harm", ["cut", "gone", "swapped", "another shape", "not in the index"])
def test_what_is_wrong_is_told_with_the_tensor(folder: Path, harm: str) -> None:
    shard = shard_of(folder, NORM)
    before = shard_of(folder, "model.embed_tokens.weight")
    assert before != shard
    if harm == "cut":
        shard.write_bytes(shard.read_bytes()[:-5])
        said = f"{shard.name} has .* its download did not end; {NORM}"
    elif harm == "gone":
        shard.unlink()
        said = f"{shard.name} is not there; {NORM}"
    elif harm == "swapped":
        shard.write_bytes(before.read_bytes())
        said = f"{shard.name} does not hold {NORM}"
    elif harm == "another shape":
        tensors = load_file(shard) | {NORM: torch.ones(31)}
        write_shard(shard, tensors)
        said = rf"{shard.name}: {NORM} has shape \(31,\), the configuration asks for \(32,\)"
    else:
        index = json.loads((folder / INDEX).read_text("utf-8"))
        del index["weight_map"][NORM]
        (folder / INDEX).write_text(json.dumps(index), "utf-8")
        said = rf"no tensor {NORM} of shape \(32,\)"
    found = WeightFiles(folder).problems(SHAPES, SHAPES, {})
    assert any(re.search(said, told) for told in found), found
    with pytest.raises(UserError, match=said):
        WeightFiles(folder).tensor(NORM, SHAPES[NORM])
    # only the files of what is asked for are looked at
    table = {name: SHAPES[name] for name in SHAPES if "embed" in name}
    assert WeightFiles(folder).problems(table, SHAPES, {}) == []
    light = tensor_files.problems(folder)
    if harm in ("cut", "gone"):
        (told,) = light
        assert shard.name in told and "it should hold model.layers" in told
    else:
        assert light == []


def pickled(folder: Path, shards: int = 1, old: bool = False) -> dict[str, torch.Tensor]:
    """The model's weights as ``.bin`` files; returns them."""
    tensors = {name: torch.randn(shape).half() for name, shape in SHAPES.items()}
    names = list(tensors)
    files = {}
    for shard in range(shards):
        file = "pytorch_model.bin"
        if shards > 1:
            file = f"pytorch_model-{shard + 1:05}-of-{shards:05}.bin"
        part = {name: tensors[name] for name in names[shard::shards]}
        torch.save(part, folder / file, _use_new_zipfile_serialization=not old)
        files |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {}, "weight_map": files}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), "utf-8")
    return tensors


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("old", [False, True])
def test_bin_files_are_read_like_safetensors(tmp_path: Path, shards: int, old: bool) -> None:
    tensors = pickled(tmp_path, shards, old)
    assert tensor_files.problems(tmp_path) == []
    files = WeightFiles(tmp_path)
    assert files.problems(SHAPES, SHAPES, {}) == []
    for name, tensor in tensors.items():
        found = files.tensor(name, SHAPES[name])
        assert found.dtype is torch.float16 and torch.equal(found, tensor)
        assert found.untyped_storage().nbytes() == tensor.nbytes
    assert files.bytes_read == sum(tensor.nbytes for tensor in tensors.values())
    assert len(files.files_read) == shards


def test_a_bin_file_that_was_cut_is_told(tmp_path: Path) -> None:
    pickled(tmp_path, 3)
    shard = tmp_path / "pytorch_model-00002-of-00003.bin"
    shard.write_bytes(shard.read_bytes()[:-200])
    (told,) = tensor_files.problems(tmp_path)
    assert shard.name in told and "download did not end" in told and "it should hold" in told
    found = WeightFiles(tmp_path).problems(SHAPES, SHAPES, {})
    assert found and all(shard.name in told for told in found)


def test_nothing_in_a_bin_file_is_executed(tmp_path: Path) -> None:
    torch.save({HEAD: Planted()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read as weights"):
        WeightFiles(tmp_path)
    assert not Path("/tmp/easyllm-planted").exists()


class Planted:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/easyllm-planted",)


def test_parts_of_a_fused_tensor_are_read_alone(tmp_path: Path) -> None:
    names = RowMapping({"model.": "transformer."}, {".pack.": (".q.", ".k.", ".v.")})
    pack = torch.arange(90.0).view(30, 3)
    write_shard(tmp_path / "model.safetensors", {"transformer.0.pack.weight": pack})
    files = WeightFiles(tmp_path, names)
    shapes = {f"model.0.{part}.weight": torch.Size([10, 3]) for part in "qkv"}
    assert files.problems(shapes, shapes, {}) == []
    for place, (name, shape) in enumerate(shapes.items()):
        assert torch.equal(files.tensor(name, shape), pack[10 * place : 10 * place + 10])
        assert files.bytes_read == (place + 1) * 120
    assert names.parameters("transformer.0.pack.weight") == list(shapes)
    assert names.tensors(reversed(shapes)) == {"transformer.0.pack.weight": list(shapes)}
    (told,) = files.problems({"model.0.k.weight": torch.Size([9, 3])}, shapes, {})
    assert "transformer.0.pack.weight has shape (30, 3), the configuration asks for (27, 3)" in told


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
