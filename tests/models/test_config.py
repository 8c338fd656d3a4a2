"""A run's model configuration: the path's files, the group's dimensions, the overrides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM

from easyllm.cli.library import shipped_folder
from easyllm.errors import UserError
from easyllm.models.config import described, hf_config
from easyllm.models.families import family_named
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


PUBLISHED = {
    "qwen_7b": """{"architectures": ["QWenLMHeadModel"], "auto_map": {"AutoConfig":
        "configuration_qwen.QWenConfig", "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
        "attn_dropout_prob": 0.0, "bf16": false, "emb_dropout_prob": 0.0, "fp16": false,
        "fp32": false, "hidden_size": 4096, "intermediate_size": 22016, "initializer_range": 0.02,
        "kv_channels": 128, "layer_norm_epsilon": 1e-06, "max_position_embeddings": 32768,
        "model_type": "qwen", "no_bias": true, "num_attention_heads": 32, "num_hidden_layers": 32,
        "onnx_safe": null, "rotary_emb_base": 10000, "rotary_pct": 1.0, "scale_attn_weights": true,
        "seq_length": 8192, "tie_word_embeddings": false, "tokenizer_class": "QWenTokenizer",
        "transformers_version": "4.32.0", "use_cache": true, "use_dynamic_ntk": true,
        "use_flash_attn": "auto", "use_logn_attn": true, "vocab_size": 151936}""",
    "baichuan2_13b": """{"_from_model_config": true, "architectures": ["BaichuanForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_baichuan.BaichuanConfig",
        "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"},
        "tokenizer_class": "BaichuanTokenizer", "bos_token_id": 1, "eos_token_id": 2,
        "gradient_checkpointing": false, "hidden_act": "silu", "hidden_size": 5120,
        "initializer_range": 0.02, "intermediate_size": 13696, "model_max_length": 4096,
        "model_type": "baichuan", "num_attention_heads": 40, "num_hidden_layers": 40,
        "pad_token_id": 0, "rms_norm_eps": 1e-06, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "transformers_version": "4.29.2", "use_cache": true,
        "vocab_size": 125696}""",
}
"""As their authors wrote them."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_group_agrees_with_what_was_published(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(PUBLISHED[name], "utf-8")
    group = yaml.safe_load((shipped_folder() / "model" / f"{name}.yaml").read_text("utf-8"))
    published = json.loads(PUBLISHED[name])
    assert published.keys() <= family_named(published["model_type"]).config_keys
    config = hf_config(spec(tmp_path, {**group, "path": str(tmp_path), "init": "random"}))
    written = json.loads(described(config).to_json_string(use_diff=False))
    changed = {"auto_map", "torch_dtype", "transformers_version", "_from_model_config"}
    kept = published.keys() - changed
    assert {key: written[key] for key in kept} == {key: published[key] for key in kept}
    if name == "baichuan2_13b":
        assert config.alibi and config.norm_head and "max_position_embeddings" not in written


def test_rows_longer_than_qwens_seq_length_lengthen_it(tmp_path: Path) -> None:
    values = json.loads(PUBLISHED["qwen_7b"]) | {"seq_length": 64}
    (tmp_path / "config.json").write_text(json.dumps(values), "utf-8")
    for rows, length in ((32, 64), (96, 96)):
        config = hf_config(spec(tmp_path, {"path": str(tmp_path), "init": "random"}, rows))
        assert config.seq_length == length
        assert config.modern().max_position_embeddings == length


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
    with pytest.raises(UserError, match="is not a decoder whose layers transformers names"):
        hf_config(spec(folder, {"path": str(folder / "gpt2"), "init": "random"}))
    family = {"_target_": "easyllm.models.families.Qwen2"}
    with pytest.raises(UserError, match="reads models of type qwen2"):
        hf_config(spec(folder, {"path": str(folder / "llama"), "family": family}))
