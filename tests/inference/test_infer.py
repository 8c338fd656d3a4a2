"""The infer stage: where the model and the prompts come from, what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from easyllm.errors import UserError
from easyllm.inference import prompts
from easyllm.spec.run import RunSpec
from easyllm.stages import load
from easyllm.stages.base import Rank
from tests.inference.small import save_model
from tests.support import merged, run_spec

BASE = {
    "model": {"dtype": "float32"},
    "inference": {"batch_size": 2, "sampling": {"max_tokens": 6}},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), chat=True)


def spec(folder: Path, model: Path | None = None, **inference: Any) -> RunSpec:
    if model:
        inference["model"] = str(model)
    return run_spec(folder, merged(BASE, {"inference": inference}))


def infer(run: RunSpec) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The stage's metrics and the results it wrote."""
    stage = load("infer")
    metrics = dict(stage.work(run, Rank()))
    (file,) = stage.outputs(run)
    lines = file.read_text("utf-8").splitlines()
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # nothing left aside
    return metrics, [json.loads(line) for line in lines]


def test_a_file_of_prompts(tmp_path: Path, model: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("first\n\n  \na much longer second one\nthird é\n", "utf-8")
    metrics, results = infer(spec(tmp_path, model, prompts=str(file)))
    assert [r["prompt"] for r in results] == ["first", "a much longer second one", "third é"]
    for result in results:
        assert set(result) == {"prompt", "text", "tokens", "finish_reason"}
        assert (result["tokens"], result["finish_reason"]) == (6, "length")
        assert result["text"]
    assert metrics["prompts"] == 3
    assert metrics["generated_tokens"] == 18
    assert metrics["tokens_per_second"] > 0
    assert [sample["prompt"] for sample in metrics["samples"]] == [r["prompt"] for r in results]
    json.dumps(metrics)


def test_prompts_by_name_and_an_output_elsewhere(tmp_path: Path, model: Path) -> None:
    output = tmp_path / "elsewhere" / "answers.jsonl"
    run = spec(tmp_path, model, prompts={"b": "two", "a": "one"}, output=str(output))
    _, results = infer(run)
    assert load("infer").outputs(run) == [output]
    assert [(r["name"], r["prompt"]) for r in results] == [("b", "two"), ("a", "one")]


def test_chat_puts_the_prompt_into_a_users_turn(tmp_path: Path, model: Path) -> None:
    _, (rendered,) = infer(spec(tmp_path, model, prompts={"a": "<user>hi\n<assistant>"}))
    _, (chat,) = infer(spec(tmp_path, model, prompts={"a": "hi"}, chat=True))
    _, (plain,) = infer(spec(tmp_path, model, prompts={"a": "hi"}))
    assert chat["text"] == rendered["text"] != plain["text"]
    assert chat["prompt"] == "hi"


def test_chat_without_a_template_is_refused(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    with pytest.raises(UserError, match="no chat_template"):
        infer(spec(tmp_path, base, prompts={"a": "hi"}, chat=True))


def test_the_model_is_the_named_one_else_the_export_else_the_path(
    tmp_path: Path, model: Path
) -> None:
    run = run_spec(tmp_path, {"model": {"path": "some/hub-model"}})
    assert prompts.model_path(run) == "some/hub-model"
    export = save_model(tmp_path / "run" / "export")
    assert prompts.model_path(run) == str(export)
    assert export / "model.safetensors" in load("infer").inputs(run)
    run = spec(tmp_path, model)
    assert prompts.model_path(run) == str(model)
    assert model / "config.json" in load("infer").inputs(run)


@pytest.mark.parametrize("config", [{}, {"path": "some/hub-model", "init": "random"}])
def test_without_a_model_it_says_what_to_run(tmp_path: Path, config: dict[str, str]) -> None:
    run = run_spec(tmp_path, {"model": config, "inference": {"prompts": {"a": "hi"}}})
    assert load("infer").inputs(run) == []
    with pytest.raises(UserError, match=r"run the stages train and export.*inference\.model="):
        load("infer").work(run, Rank())


def test_a_prompt_file_that_is_missing_or_empty(tmp_path: Path, model: Path) -> None:
    file = tmp_path / "prompt.txt"
    run = spec(tmp_path, model, prompts=str(file))
    with pytest.raises(UserError, match=r"inference\.prompts=.*no such file"):
        infer(run)
    file.write_text("\n \n")
    with pytest.raises(UserError, match="holds no prompt"):
        infer(run)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        infer(run)
    assert load("infer").inputs(run)[-1] == file


def test_a_prompt_too_long_is_refused_and_earlier_results_stay(tmp_path: Path, model: Path) -> None:
    run = spec(tmp_path, model, prompts={"a": "hi"})
    _, before = infer(run)
    with pytest.raises(UserError, match="128 positions"):
        infer(spec(tmp_path, model, prompts={"a": "hi", "b": "x" * 500}))
    assert [json.loads(line) for line in load("infer").outputs(run)[0].open()] == before
