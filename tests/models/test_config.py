"""A run's model configuration: the path's files, the group's dimensions, the overrides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM

from easyllm.errors import UserError
from easyllm.models.config import hf_config
from easyllm.spec.run import RunSpec
from tests.support import LLAMA, merged, run_spec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    LlamaForCausalLM(LlamaConfig(**LLAMA)).save_pretrained(tmp_path / "llama")
    return tmp_path


def spec(folder: Path, model: Mapping[str, Any], seq_len: int = 64) -> RunSpec:
    return run_spec(folder, merged({"data": {"seq_len": seq_len}}, {"model": model}))


def test_dimensions_come_from_the_path(folder: Path) -> None:
    config = hf_config(spec(folder, {"path": str(folder / "llama")}))
    assert (config.model_type, config.hidden_size, config.num_key_value_heads) == ("llama", 32, 2)


def test_dimensions_come_from_the_group(folder: Path) -> None:
    config = hf_config(spec(folder, {"init": "random", "config": LLAMA}))
    assert config.num_hidden_layers == 2
    config = hf_config(
        spec(folder, {"init": "random", "config": LLAMA, "overrides": {"num_hidden_layers": 5}})
    )
    assert config.num_hidden_layers == 5


def test_a_group_that_agrees_with_its_files_is_taken(folder: Path) -> None:
    stated = {**LLAMA, "rope_theta": 10000.0, "torch_dtype": "bfloat16", "eos_token_id": 9}
    hf_config(spec(folder, {"path": str(folder / "llama"), "config": stated}))


def test_numbers_may_differ_by_the_rounding_of_fp32(folder: Path) -> None:
    stated = {**LLAMA, "rms_norm_eps": 9.999999974752427e-07}
    hf_config(spec(folder, {"path": str(folder / "llama"), "config": stated}))


@pytest.mark.parametrize(
    ("key", "value", "published"),
    [("hidden_size", 64, 32), ("rms_norm_eps", 1e-5, 1e-6), ("tie_word_embeddings", True, False)],
)
def test_a_group_that_contradicts_its_files_is_refused(
    folder: Path, key: str, value: object, published: object
) -> None:
    model = {"path": str(folder / "llama"), "config": {**LLAMA, key: value}}
    with pytest.raises(UserError, match=rf"model\.config\.{key}={value}.*says {published}"):
        hf_config(spec(folder, model))


def test_an_override_explains_the_difference(folder: Path) -> None:
    config = {**LLAMA, "num_hidden_layers": 3}
    model = {"path": str(folder / "llama"), "init": "random", "config": config}
    config = hf_config(spec(folder, {**model, "overrides": {"num_hidden_layers": 3}}))
    assert config.num_hidden_layers == 3


def test_rope_settings_are_compared_whatever_their_spelling(folder: Path) -> None:
    model = {"path": str(folder / "llama"), "config": {**LLAMA, "rope_theta": 500000.0}}
    with pytest.raises(UserError, match="rope"):
        hf_config(spec(folder, model))


def test_rows_longer_than_the_model_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"data\.seq_len=129.*128 positions"):
        hf_config(spec(folder, {"path": str(folder / "llama")}, seq_len=129))


def test_values_that_make_no_model_are_refused(folder: Path) -> None:
    model = {"path": str(folder / "llama"), "overrides": {"hidden_size": "wide"}}
    with pytest.raises(UserError, match="make no llama model"):
        hf_config(spec(folder, model))


def test_other_families_are_refused_by_name(folder: Path) -> None:
    GPT2Config(n_embd=32, n_head=4).save_pretrained(folder / "gpt2")
    with pytest.raises(UserError, match="type gpt2 are not known; known: llama, mistral"):
        hf_config(spec(folder, {"path": str(folder / "gpt2"), "init": "random"}))
    family = {"_target_": "easyllm.models.families.Qwen2"}
    with pytest.raises(UserError, match="reads models of type qwen2"):
        hf_config(spec(folder, {"path": str(folder / "llama"), "family": family}))
