"""The infer stage: where the model and the prompts come from, what is written."""

from __future__ import annotations

import dataclasses
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from easyllm import preflight, runfile
from easyllm.errors import UserError
from easyllm.inference import prompts
from easyllm.inference.batch.results import Journal
from easyllm.paths import RunPaths
from easyllm.spec import checks
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
    left = [path.name for path in file.parent.iterdir() if path.name.endswith("journal")]
    assert left == []  # nothing left aside
    return metrics, [json.loads(line) for line in lines]


FIELDS = {"id", "prompt", "text", "finish_reason", "prompt_tokens", "completion_tokens"}


def test_a_file_of_prompts(tmp_path: Path, model: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("first\n\n  \na much longer second one\nthird é\n", "utf-8")
    metrics, results = infer(spec(tmp_path, model, prompts=str(file)))
    assert [r["prompt"] for r in results] == ["first", "a much longer second one", "third é"]
    assert [r["id"] for r in results] == [1, 4, 5]  # its line
    for result in results:
        assert set(result) == FIELDS
        assert (result["completion_tokens"], result["finish_reason"]) == (6, "length")
        assert result["prompt_tokens"] == len(result["prompt"].encode())
        assert result["text"]
    assert (metrics["prompts"], metrics["failed"], metrics["resumed"]) == (3, 0, 0)
    assert metrics["generated_tokens"] == 18
    assert metrics["tokens_per_second"] > 0
    assert [sample["prompt"] for sample in metrics["samples"]] == [r["prompt"] for r in results]
    json.dumps(metrics)


def test_prompts_by_name_and_an_output_elsewhere(tmp_path: Path, model: Path) -> None:
    output = tmp_path / "elsewhere" / "answers.jsonl"
    run = spec(tmp_path, model, prompts={"b": "two", "a": "one"}, output=str(output))
    _, results = infer(run)
    assert load("infer").outputs(run) == [output]
    assert [(r["id"], r["prompt"]) for r in results] == [("b", "two"), ("a", "one")]


TALK = [{"role": "user", "content": "hi"}]
RECORDS = [
    {"id": "a", "prompt": "one"},
    {"text": "two"},
    "three",
    {"id": 7, "messages": TALK},
    {"prompt": TALK},
    {"messages": [{"user": "hi"}]},
    TALK,
]


def test_json_lines_of_texts_and_conversations(tmp_path: Path, model: Path) -> None:
    file = tmp_path / "prompts.jsonl.gz"
    wrong = ['{"id": "w"}', "{", '{"prompt": 3}', '{"messages": [{"robot": "hi"}]}',
             '{"messages": []}', '{"id": "long", "prompt": "' + "x" * 500 + '"}']  # fmt: skip
    lines = [*map(json.dumps, RECORDS), "", *wrong]
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    metrics, results = infer(spec(tmp_path, model, prompts=str(file)))
    assert [r["id"] for r in results] == ["a", 2, 3, 7, 5, 6, 7, "w", 10, 11, 12, 13, "long"]
    good, bad = results[: len(RECORDS)], results[len(RECORDS) :]
    assert [r["prompt"] for r in good] == ["one", "two", "three", TALK, TALK, TALK, TALK]
    assert len({r["text"] for r in good[3:]}) == 1  # all are the same conversation
    _, (chat,) = infer(spec(tmp_path, model, prompts={"a": "hi"}, chat=True))
    assert good[3]["text"] == chat["text"]
    for result, said in zip(
        bad,
        ["none of messages, prompt, text", "not JSON", "neither a text nor",
         "message 1: it has no role, but the keys [robot]",
         "a conversation is a list of messages, not an empty list", "500 tokens"],
        strict=True,
    ):  # fmt: skip
        assert said in result["error"]
        assert set(result) == FIELDS | {"error"}
        assert (result["text"], result["finish_reason"]) == (None, None)
    assert (metrics["prompts"], metrics["failed"]) == (13, 6)


def test_parquet_in_and_out(tmp_path: Path, model: Path) -> None:
    file, output = tmp_path / "prompts.parquet", tmp_path / "out.parquet"
    talk = [None, TALK, None]
    columns = {"id": ["a", "b", "c"], "prompt": ["one", None, "x" * 500], "messages": talk}
    pq.write_table(pa.table(columns), file)
    asked = {"prompts": str(file), "output": str(output), "sampling": {"logprobs": 1}}
    run = spec(tmp_path, model, **asked)
    metrics = load("infer").work(run, Rank())
    assert (metrics["prompts"], metrics["failed"]) == (3, 1)
    rows = pq.read_table(output).to_pylist()
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert json.loads(rows[1]["prompt"]) == TALK
    assert "500 tokens" in rows[2]["error"] and rows[2]["text"] is None
    lines = tmp_path / "out.jsonl"
    load("infer").work(spec(tmp_path, model, **{**asked, "output": str(lines)}), Rank())
    results = [json.loads(line) for line in lines.open()]
    for row, result in zip(rows, results, strict=True):
        assert row["text"] == result["text"]
        assert row["completion_tokens"] == result["completion_tokens"]
        if result["text"] is not None:
            assert json.loads(row["logprobs"]) == result["logprobs"]
            assert len(result["logprobs"]) == 6 and len(result["logprobs"][0]["top"]) == 1
    pq.write_table(pa.table({"words": ["one"]}), file)
    with pytest.raises(UserError, match="no column messages or prompt or text, but words"):
        infer(run)


def test_several_answers_to_each_prompt(tmp_path: Path, model: Path) -> None:
    warm = {"n": 3, "temperature": 1.0, "seed": 3, "max_tokens": 12}
    asked = {"prompts": {"a": "one", "b": "two"}, "sampling": warm}
    metrics, results = infer(spec(tmp_path, model, **asked))
    assert [(r["id"], r["index"]) for r in results] == [(i, n) for i in "ab" for n in range(3)]
    assert len({r["text"] for r in results}) == 6
    assert metrics["prompts"] == 2
    _, again = infer(spec(tmp_path, model, batch_size=1, **asked))
    assert again == results  # whatever else is generated beside it


def test_settings_that_do_not_fit_are_refused(tmp_path: Path, model: Path) -> None:
    run = spec(tmp_path, model, sampling={"min_tokens": 9, "max_tokens": 8})
    (problem,) = checks.problems(run)
    assert problem.key == "inference.sampling.min_tokens"
    run = dataclasses.replace(
        spec(tmp_path, model, output=str(tmp_path / "out.csv"), prompts=str(tmp_path / "none")),
        stages=("infer",),
    )
    keys = [problem.key for problem in preflight.problems(run)]
    assert keys == ["inference.prompts", "inference.output"]


def test_stop_texts(tmp_path: Path, model: Path) -> None:
    _, (whole,) = infer(spec(tmp_path, model, prompts={"a": "hi"}, sampling={"max_tokens": 40}))
    stop = whole["text"][5:7]
    sampling = {"max_tokens": 40, "stop": [stop]}
    _, (cut,) = infer(spec(tmp_path, model, prompts={"a": "hi"}, sampling=sampling))
    assert cut["text"] == whole["text"][: whole["text"].index(stop)]
    assert cut["finish_reason"] == "stop" and cut["completion_tokens"] < 40


def test_chat_puts_the_prompt_into_a_users_turn(tmp_path: Path, model: Path) -> None:
    _, (rendered,) = infer(spec(tmp_path, model, prompts={"a": "<user>hi\n<assistant>"}))
    _, (chat,) = infer(spec(tmp_path, model, prompts={"a": "hi"}, chat=True))
    _, (plain,) = infer(spec(tmp_path, model, prompts={"a": "hi"}))
    assert chat["text"] == rendered["text"] != plain["text"]
    assert chat["prompt"] == "hi"


def test_chat_without_a_template_is_an_error_of_each(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    metrics, (result,) = infer(spec(tmp_path, base, prompts={"a": "hi"}, chat=True))
    assert "no chat_template" in result["error"] and metrics["failed"] == 1


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
    file.write_bytes(b"fine\n\xff\xfe\nfine too\n")
    assert load("infer").inputs(run)[-1] == file
    metrics, results = infer(run)
    assert (metrics["prompts"], metrics["failed"]) == (3, 1)
    assert "not UTF-8" in results[1]["error"] and results[2]["text"]


def test_another_run_that_writes_there_is_named(tmp_path: Path, model: Path) -> None:
    run = spec(tmp_path, model, prompts={"a": "hi"})
    other = Journal(RunPaths(run).results, "other")
    with pytest.raises(UserError, match="another process is writing it"):
        infer(run)
    other.close()
    infer(run)  # what the other one had begun was of something else


def test_a_journal_cut_anywhere_loses_no_whole_result(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    journal = Journal(output, "x")
    for at in (2, 0, 1):
        journal.add(at, [{"id": at, "text": "é" * at}])
    journal.close()
    whole = journal.path.read_bytes()
    ends = [n + 1 for n, byte in enumerate(whole) if byte == 10]
    for length in range(len(whole) + 1):
        journal.path.write_bytes(whole[:length])
        again = Journal(output, "x")
        assert len(again) == max(0, sum(end <= length for end in ends) - 1)
        for at in range(3):
            if at not in again:
                again.add(at, [{"id": at, "text": "é" * at}])
        assert [r["id"] for r in again.results()] == [0, 1, 2]
        again.close()
    changed = Journal(output, "y")
    assert len(changed) == 0
    changed.close()


def test_a_damaged_line_of_the_journal_loses_itself_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    journal = Journal(output, "x")
    for at in range(4):
        journal.add(at, [{"id": at, "text": "one two"}])
    journal.close()
    lines = journal.path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"two", b"twn")
    lines[3] = lines[3].replace(b'"at"', b'"at')
    journal.path.write_bytes(b"".join(lines))
    again = Journal(output, "x")
    said = capfd.readouterr().err
    assert f"{journal.path}, line 3: is damaged" in said and "line 4: is damaged" in said
    assert [at for at in range(4) if at in again] == [0, 3]
    for at in (1, 2):
        again.add(at, [{"id": at, "text": "one two"}])
    assert list(again.results()) == [{"id": at, "text": "one two"} for at in range(4)]
    again.close()


def test_results_that_are_whole_are_not_computed_again(tmp_path: Path, model: Path) -> None:
    run = spec(tmp_path, model, prompts={"one": "w1", "two": "w2 w3"})
    first, results = infer(run)
    assert first["resumed"] == 0 and first["generated_tokens"] > 0
    (file,) = load("infer").outputs(run)
    before = file.stat().st_mtime_ns
    metrics, again = infer(run)
    assert again == results and file.stat().st_mtime_ns == before
    assert metrics["resumed"] == metrics["prompts"] == 2 and metrics["generated_tokens"] == 0
    assert metrics["samples"] == first["samples"]
    file.write_text(file.read_text().replace("w1", "w7"))  # what a disk or a person altered
    metrics, again = infer(run)
    assert again == results and metrics["resumed"] == 0


@pytest.mark.parametrize("temperature", [pytest.param(0.0, marks=pytest.mark.slow), 1.0])
def test_killed_five_times_it_ends_as_if_undisturbed(
    tmp_path: Path, model: Path, temperature: float
) -> None:
    """2,000 prompts; SIGKILL at some moment of each life."""
    file = tmp_path / "prompts.jsonl"
    prompts = [{"id": f"p{n}", "prompt": f"number {n % 97} of {n}"} for n in range(2000)]
    file.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    sampling = {"max_tokens": 3, "temperature": temperature}
    asked = {"prompts": str(file), "sampling": sampling, "batch_size": 32}
    for name in ("calm", "killed"):
        run = spec(tmp_path / name, model, **asked)
        runfile.save(run, RunPaths(run).spec)
    script = Path(__file__).parent / "killed.py"
    command = [sys.executable, str(script), str(tmp_path / "calm"), str(tmp_path / "killed")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] == 5
    assert 0 < told["resumed"] < 2000  # it went on where the fifth kill had left it
    calm, killed = ((tmp_path / n / "run/inference/results.jsonl") for n in ("calm", "killed"))
    assert calm.read_bytes() == killed.read_bytes()
    results = [json.loads(line) for line in killed.open()]
    assert [r["id"] for r in results] == [prompt["id"] for prompt in prompts]
    assert len({r["text"] for r in results}) > 100
