"""Tasks of lm-eval on models: results, items, comparisons, and what users get wrong."""

from __future__ import annotations

import asyncio
import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from easyllm.errors import UserError
from easyllm.evaluation.lm_eval.comparison import compared
from easyllm.evaluation.lm_eval.evaluate import evaluate
from easyllm.paths import RunPaths
from easyllm.preflight.machine import problems as machine_problems
from easyllm.preflight.places import problems as place_problems
from easyllm.spec.checks import problems
from easyllm.spec.run import RunSpec
from easyllm.stages import load
from easyllm.tasks import builtin
from tests.evaluation.conftest import begin_texts
from tests.inference.small import save_model
from tests.support import merged, run_spec

ITEMS = [
    {"question": "The sky is", "choices": ["blue", "loud", "flat"], "answer": 0},
    {"question": "Two and two are", "choices": ["five", "four", "nine"], "answer": 1},
    {"question": "A cat says", "choices": ["moo", "woof", "meow"], "answer": 2},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("evaluated"), chat=True)


def local_task(folder: Path, **over: Any) -> Path:
    """A task whose items lie beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    content = {
        "task": "another_name", "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "items.jsonl"}}, "test_split": "test",
        "output_type": "multiple_choice", "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "answer", **over,
    }  # fmt: skip
    (folder / "task.yaml").write_text(yaml.safe_dump(content), "utf-8")
    return folder / "task.yaml"


def run_of(folder: Path, model: Path, **evaluation: Any) -> RunSpec:
    config = {"inference": {"model": str(model)}, "model": {"dtype": "float32"}}
    return run_spec(folder, merged(config, {"evaluation": evaluation, "stages": ["evaluate"]}))


def evaluated(run: RunSpec) -> tuple[dict[str, Any], str]:
    """The content of ``results.json``, and the printed table."""
    text = StringIO()
    evaluate(run, Console(file=text, width=110))
    file = RunPaths(run).evaluation / "results.json"
    return json.loads(file.read_text("utf-8")), text.getvalue()


def likelihood(model: Path, context: str, choice: str) -> float:
    """By transformers itself."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    begun, ids = (tokenizer(text)["input_ids"] for text in (context, context + choice))
    with torch.no_grad():
        logprobs = network(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return sum(float(logprobs[at - 1, ids[at]]) for at in range(len(begun), len(ids)))


def test_a_task_of_local_files(tmp_path: Path, model: Path) -> None:
    file = local_task(tmp_path / "task")
    run = run_of(tmp_path, model, tasks={"mine": {"path": str(file)}})
    results, table = evaluated(run)
    expected = [
        max(range(3), key=lambda n: likelihood(model, item["question"], f" {item['choices'][n]}"))
        for item in ITEMS
    ]
    right = sum(found == item["answer"] for found, item in zip(expected, ITEMS, strict=True))
    found = results["tasks"]["mine"]["metrics"]["acc"]
    assert found["value"] == pytest.approx(right / 3) and found["stderr"] is not None
    assert results["tasks"]["mine"]["items"] == 3 and "mine" in table
    lines = (RunPaths(run).evaluation / "samples/mine.jsonl").read_text("utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    assert [sample["doc"]["question"] for sample in samples] == [i["question"] for i in ITEMS]
    for sample, item in zip(samples, ITEMS, strict=True):
        for (given,), choice in zip(sample["resps"], item["choices"], strict=True):
            value = likelihood(model, item["question"], f" {choice}")
            assert float(given[0]) == pytest.approx(value, abs=1e-3)


def test_limits_examples_and_chat_templates_are_used(tmp_path: Path, model: Path) -> None:
    file = str(local_task(tmp_path / "task", fewshot_split="test"))
    tasks = {"two": {"path": file, "limit": 2}, "shots": {"path": file, "few_shot": 1}}
    run = run_of(tmp_path, model, tasks=tasks, chat_template=True)
    results, _ = evaluated(run)
    assert results["tasks"]["two"]["items"] == 2
    assert results["tasks"]["shots"]["few_shot"] == 1
    line = (RunPaths(run).evaluation / "samples/shots.jsonl").read_text("utf-8").splitlines()[0]
    context = json.loads(line)["arguments"][0][0]
    assert context.startswith("<user>") and context.endswith("<assistant>")
    assert context.count("<assistant>") == 2, "an example's answer, and the one that is asked for"


def test_own_tasks_need_no_network(tmp_path: Path, model: Path) -> None:
    tasks = {"python_docs": {"limit": 5}, "python_keywords": {"limit": 5}}
    results, _ = evaluated(run_of(tmp_path, model, tasks=tasks))
    assert {name: result["items"] for name, result in results["tasks"].items()} == {
        "python_docs": 5, "python_keywords": 5,
    }  # fmt: skip
    for item in builtin.python_docs()["test"]:
        assert len(set(item["choices"])) == 4
    questions = builtin.python_keywords()["test"]
    assert len(questions) == 40 and all(len(set(item["choices"])) == 4 for item in questions)


@pytest.mark.parametrize("as_run", [True, False])
def test_a_baseline_is_compared_item_by_item(tmp_path: Path, model: Path, as_run: bool) -> None:
    other = save_model(tmp_path / "other" / "export", initializer_range=0.5)
    file = str(local_task(tmp_path / "task"))
    baseline = str(other.parent if as_run else other)
    run = run_of(tmp_path, model, tasks={"mine": {"path": file}}, baseline=baseline)
    assert list(place_problems(run)) == []
    results, table = evaluated(run)
    alone, _ = evaluated(run_of(tmp_path / "alone", other, tasks={"mine": {"path": file}}))
    assert results["baseline"]["tasks"] == alone["tasks"]
    found = results["comparison"]["mine"]["metrics"]["acc"]
    mine, theirs = (r["tasks"]["mine"]["metrics"]["acc"]["value"] for r in (results, alone))
    assert found["difference"] == pytest.approx(mine - theirs)
    changed = results["comparison"]["mine"]
    assert len(changed["better"]["acc"]) - len(changed["worse"]["acc"]) == round(
        3 * (mine - theirs)
    )
    assert "difference" in table


def test_items_that_changed() -> None:
    def result(*values: float) -> dict[str, Any]:
        samples = [
            {"task": "t", "doc_id": n, "acc": v if kept == "none" else 0.0, "filter": kept}
            for kept in ("none", "strict")
            for n, v in enumerate(values)
        ]
        mean = {"value": sum(values) / len(values), "stderr": None}
        return {"metrics": {"acc": mean}, "samples": samples}

    found = compared(result(1, 0, 1, 1), result(0, 1, 1, 0))
    assert found["better"]["acc"] == ["0", "3"] and found["worse"]["acc"] == ["1"]
    assert found["metrics"]["acc"]["difference"] == pytest.approx(0.25)
    assert found["metrics"]["acc"]["stderr"] == pytest.approx(0.4787, abs=1e-3)


def test_a_task_that_does_not_exist(tmp_path: Path, model: Path) -> None:
    run = run_of(tmp_path, model, tasks={"arc_eazy": None})
    with pytest.raises(
        UserError, match=r"evaluation\.tasks\.arc_eazy: .* no such task; .*arc_easy"
    ):
        evaluated(run)


def test_a_tag_of_several_tasks(tmp_path: Path, model: Path) -> None:
    run = run_of(tmp_path, model, tasks={"ai2_arc": None})
    with pytest.raises(UserError, match=r"evaluation\.tasks\.ai2_arc is a tag of several tasks"):
        evaluated(run)


def test_a_task_whose_data_cannot_be_fetched(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = local_task(tmp_path / "task", dataset_path="nobody/has-this", dataset_kwargs={})
    run = run_of(tmp_path, model, tasks={"far": {"path": str(file)}})
    with pytest.raises(UserError, match=r"evaluation\.tasks\.far: its data cannot be fetched"):
        evaluated(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [", r"evaluation\.tasks\.mine\.path=.*"), ("a: 1\n", "describes no task of lm-eval")],
)
def test_a_file_that_is_no_task(tmp_path: Path, model: Path, content: str, message: str) -> None:
    (tmp_path / "task.yaml").write_text(content)
    run = run_of(tmp_path, model, tasks={"mine": {"path": str(tmp_path / "task.yaml")}})
    with pytest.raises(UserError, match=message):
        evaluated(run)


def test_mistakes_that_are_found_before_anything_starts(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (none,) = problems(run_of(tmp_path, model))
    assert none.key == "evaluation.tasks" and "python_keywords" in none.remedy
    tasks = {"mine": {"path": str(tmp_path / "absent.yaml")}}
    found = list(place_problems(run_of(tmp_path, model, tasks=tasks, baseline="nowhere/at/all")))
    assert [p.key for p in found] == ["evaluation.tasks.mine.path", "evaluation.baseline"]
    (meant,) = place_problems(run_of(tmp_path, model, tasks={"pyton_docs": None}))
    assert meant.key == "evaluation.tasks.pyton_docs" and "python_docs" in meant.remedy
    (unknown,) = problems(run_of(tmp_path, model, tasks={"x": None}, baseline="model.path"))
    assert unknown.key == "evaluation.baseline"
    monkeypatch.setattr("easyllm.preflight.machine.find_spec", lambda name: None)
    missing = list(machine_problems(run_of(tmp_path, model, tasks={"x": None})))
    assert any("easyllm[evaluation]" in p.remedy for p in missing)


def test_other_tasks_and_settings_have_results_of_their_own(tmp_path: Path, model: Path) -> None:
    few, more = ({"python_docs": {"limit": limit}} for limit in (2, 3))
    runs = [run_of(tmp_path, model, tasks=tasks) for tasks in (few, more)]
    for run in runs:
        evaluated(run)
    for run, items in zip(runs, (2, 3), strict=True):
        (results,) = load("evaluate").outputs(run)
        content = json.loads(results.read_text("utf-8"))
        assert content["tasks"]["python_docs"]["items"] == items
        assert content["settings"]["tasks"]["python_docs"]["limit"] == items
    assert load("evaluate").record(runs[0]) != load("evaluate").record(runs[1])
    same = run_of(tmp_path, model, tasks=few, batch_size=2)
    assert load("evaluate").outputs(same) == load("evaluate").outputs(runs[0])


@pytest.mark.parametrize("shots", [1, 2])
def test_examples_never_include_the_item_itself(tmp_path: Path, model: Path, shots: int) -> None:
    tasks = {"mine": {"path": str(local_task(tmp_path / "task")), "few_shot": shots},
             "python_keywords": {"few_shot": 20, "limit": 10}}  # fmt: skip
    run = run_of(tmp_path, model, tasks=tasks)
    evaluated(run)
    for name, items in (("mine", 3), ("python_keywords", 10)):
        lines = (RunPaths(run).evaluation / f"samples/{name}.jsonl").read_text("utf-8").splitlines()
        assert len(lines) == items
        for line in lines:
            sample = json.loads(line)
            assert sample["arguments"][0][0].count(sample["doc"]["question"]) == 1


def test_the_data_of_a_task_are_inputs(tmp_path: Path, model: Path) -> None:
    file = local_task(tmp_path / "task", process_docs="PLACE")
    file.write_text(file.read_text("utf-8").replace("PLACE", "!function code.change"), "utf-8")
    run = run_of(tmp_path, model, tasks={"mine": {"path": str(file)}})
    assert {file, file.parent / "items.jsonl"} <= set(load("evaluate").inputs(run))


def test_a_wrong_baseline_is_refused_before_any_work(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run = run_of(tmp_path, model, tasks={"python_docs": None}, baseline="nowhere")
    monkeypatch.setattr("easyllm.evaluation.lm_eval.evaluate._measured", pytest.fail)
    with pytest.raises(UserError, match="nowhere"):
        evaluated(run)


def test_the_results_of_a_stage_are_its_files(tmp_path: Path, model: Path) -> None:
    run = run_of(tmp_path, model, tasks={"python_docs": {"limit": 2}})
    stage = load("evaluate")
    assert not stage.outputs(run)[0].exists()
    evaluated(run)
    assert stage.outputs(run)[0].exists()


@pytest.mark.parametrize("first_token", [False, True])
def test_an_engine_gives_what_lm_evals_own_class_gives(tmp_path: Path, first_token: bool) -> None:
    """As vLLM runs tasks; here with the engine for transformers."""
    from easyllm.evaluation.lm_eval.engine_model import EngineModel
    from easyllm.evaluation.lm_eval.models import loaded
    from easyllm.tasks.harness import Harness

    model = save_model(tmp_path / "model")
    if first_token:
        begin_texts(model)
    generation = {
        "output_type": "generate_until", "doc_to_choice": None, "doc_to_target": "{{question}}",
        "generation_kwargs": {"until": ["zz"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    rolling = {
        "output_type": "loglikelihood_rolling", "doc_to_choice": None, "doc_to_text": "",
        "doc_to_target": "{{question}}", "metric_list": [{"metric": "word_perplexity"}],
    }  # fmt: skip
    files = {
        "chosen": local_task(tmp_path / "chosen"),
        "generated": local_task(tmp_path / "generated", **generation),
        "rolling": local_task(tmp_path / "rolling", **rolling),
    }
    run = run_of(tmp_path, model, tasks={name: {"path": str(f)} for name, f in files.items()})
    tasks = Harness(run.evaluation.tasks, "evaluation.tasks")
    with loaded(run, model) as theirs:
        expected = tasks.results(theirs, run.seed, chat_template=False)
    engine = run.inference.engine.load(model, run)
    try:
        with asyncio.Runner() as runner:
            found = tasks.results(EngineModel(engine, runner, 4, {}), run.seed)
    finally:
        engine.close()
    for name in files:
        ours, other = (
            [sample["resps"] for sample in results[name]["samples"]]
            for results in (found, expected)
        )
        assert len(ours) == len(ITEMS)
        if name == "generated":
            assert ours == other and all(resps[0][0] for resps in ours)
            continue
        for mine, right in zip(ours, other, strict=True):
            for (one,), (two,) in zip(mine, right, strict=True):
                pair = (one, two) if name == "rolling" else (one[0], two[0])
                assert pair[0] == pytest.approx(pair[1], abs=1e-4)
                assert name == "rolling" or one[1] == two[1]
