"""Both spellings of what transformers 5 renamed, in configurations and tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from easyllm.data.tokenizers.portable import of_model, settle
from easyllm.models.compatible import laid_over, older_rope, settle_tokenizer, with_older_keys
from easyllm.models.config import hf_config
from tests.models.exported import TYPES, WORDS, published_tokenizers
from tests.models.small import SMALL
from tests.support import run_spec

LINEAR = {"rope_type": "linear", "factor": 2.0}


def built(name: str, over: dict[str, Any]) -> Any:
    values = {**SMALL[name], **over}
    return AutoConfig.for_model(values.pop("model_type"), **values)


@pytest.mark.parametrize("name", [n for n, (model, _) in TYPES.items() if model not in
                                  ("qwen", *(m for m in SMALL if "baichuan" in m))])  # fmt: skip
def test_both_spellings_say_the_same(name: str) -> None:
    config = built(*TYPES[name])
    described = with_older_keys(json.loads(config.to_json_string()))
    positions = config.rope_parameters
    assert described["rope_theta"] == positions["rope_theta"]
    rest = {key: value for key, value in positions.items() if key != "rope_theta"}
    scaled = positions["rope_type"] != "default"
    assert described["rope_scaling"] == (rest if scaled else None)
    assert described["tie_word_embeddings"] is config.tie_word_embeddings
    values = {key: value for key, value in described.items() if key != "model_type"}
    again = AutoConfig.for_model(config.model_type, **values)
    assert again.rope_parameters == positions


def test_a_configuration_says_nothing_of_this_machine() -> None:
    given = {"_name_or_path": "/home/me/model", "_commit_hash": "1f", "dtype": "bfloat16"}
    described = with_older_keys(given)
    assert described["dtype"] == described["torch_dtype"] == "bfloat16"
    assert not {"_name_or_path", "_commit_hash"} & described.keys()
    assert with_older_keys({"dtype": None}).get("torch_dtype") is None


def test_positions_by_type_of_layer_are_named_as_gemma_3_has_them() -> None:
    config = AutoConfig.for_model("gemma3_text", num_hidden_layers=6)
    older = older_rope(json.loads(config.to_json_string()))
    assert older == {"rope_theta": 1e6, "rope_scaling": None, "rope_local_base_freq": 1e4}


def test_a_share_of_a_head_that_turns_stands_beside() -> None:
    config = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                  "partial_rotary_factor": 0.5}}  # fmt: skip
    assert older_rope(config) == {
        "rope_theta": 1e4, "partial_rotary_factor": 0.5, "rope_scaling": None}  # fmt: skip
    assert older_rope({"hidden_size": 4}) == {}, "a model without rotary positions"


FILES = {
    "new": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "old": {"rope_theta": 1e6, "rope_scaling": None},
    "both": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "rope_theta": 1e6,
        "rope_scaling": None,
    },
}


@pytest.mark.parametrize("spelling", FILES)
@pytest.mark.parametrize(
    ("overrides", "theta", "kind"),
    [
        ({}, 1e6, "default"),
        ({"rope_theta": 5e5}, 5e5, "default"),
        ({"rope_scaling": LINEAR}, 1e6, "linear"),
        ({"rope_theta": 5e5, "rope_scaling": LINEAR}, 5e5, "linear"),
        ({"rope_parameters": {**LINEAR, "rope_theta": 7.0}}, 7.0, "linear"),
    ],
)
def test_overrides_reach_the_positions_whatever_the_spelling(
    tmp_path: Path, spelling: str, overrides: dict[str, Any], theta: float, kind: str
) -> None:
    """transformers 5 would pass over the one, and take 10,000 beside the other."""
    (tmp_path / "own").mkdir()
    plain = {key: value for key, value in SMALL["qwen2"].items() if "rope" not in key}
    file = tmp_path / "own" / "config.json"
    file.write_text(json.dumps({**plain, **FILES[spelling]}), "utf-8")
    model = {"path": str(tmp_path / "own"), "init": "random", "overrides": overrides}
    config = hf_config(run_spec(tmp_path, {"model": model, "data": {"seq_len": 64}}))
    assert config.rope_parameters["rope_theta"] == theta
    assert config.rope_parameters["rope_type"] == kind


def test_other_overrides_change_nothing_else() -> None:
    assert laid_over({"a": 1, **FILES["both"]}, {"a": 2}) == {"a": 2, **FILES["both"]}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return published_tokenizers(tmp_path_factory.mktemp("tokenizers"))


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    return found


@pytest.mark.parametrize("name", ["new", "again", "llama"])
def test_a_tokenizer_is_one_that_version_4_knows(tokenizers: dict[str, Path], name: str) -> None:
    folder = tokenizers[name]
    if name == "again":
        assert config_of(folder)["tokenizer_class"] == "TokenizersBackend"
        assert config_of(folder)["is_local"] is True
    settle(folder)
    config = config_of(folder)
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    known = {"model_max_length", "model_input_names", "tokenizer_class", "eos_token", "bos_token",
             "unk_token", "pad_token", "additional_special_tokens",
             "clean_up_tokenization_spaces", "add_prefix_space", "add_bos_token"}  # fmt: skip
    assert config.keys() <= known
    if name != "llama":
        assert config["additional_special_tokens"] == ["<turn>"]
    stamp = [(file.name, file.stat().st_mtime_ns) for file in sorted(folder.iterdir())]
    settle(folder)
    assert stamp == [(file.name, file.stat().st_mtime_ns) for file in sorted(folder.iterdir())]


def test_named_tokens_are_a_map_in_both(tmp_path: Path) -> None:
    given = {
        "tokenizer_class": "TokenizersBackend", "extra_special_tokens": [],
        "image_token": "<image>", "model_specific_special_tokens": {"image_token": "<image>"},
        "name_or_path": "/home/me", "is_local": False, "local_files_only": True,
        "backend": "tokenizers",
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(given), "utf-8")
    settle_tokenizer(tmp_path)
    assert config_of(tmp_path) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "image_token": "<image>",
        "extra_special_tokens": {"image_token": "<image>"},
        "model_input_names": ["input_ids", "attention_mask"],
    }


def test_rules_of_a_class_do_not_replace_those_of_the_file(tmp_path: Path) -> None:
    """As published with DeepSeek's distilled models: byte-level rules, and Llama's class."""
    folder = published_tokenizers(tmp_path)["new"]
    right = of_model(folder)(WORDS)["input_ids"]
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**config_of(folder), "tokenizer_class": "LlamaTokenizerFast"}))
    assert of_model(folder)(WORDS)["input_ids"] != right, "what transformers 5 makes of it"
    settle(folder)
    assert of_model(folder)(WORDS)["input_ids"] == right


def test_a_published_file_that_is_known_stays_as_it_is(tmp_path: Path) -> None:
    folder = published_tokenizers(tmp_path)["new"]
    text = '{"tokenizer_class":   "PreTrainedTokenizerFast", "model_input_names": ["input_ids"]}'
    (folder / "tokenizer_config.json").write_text(text)
    settle(folder)
    assert (folder / "tokenizer_config.json").read_text() == text
    (folder / "tokenizer_config.json").write_text("{")
    settle(folder)
