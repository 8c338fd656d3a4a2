"""What a record of batch inference has beside its prompt is honoured, or is its error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from easyllm.inference.batch.readers import Prompt, read_prompts
from easyllm.spec.run import RunSpec
from tests.inference.batch.test_infer import infer, spec
from tests.inference.small import save_model

HI = [{"role": "user", "content": "hi"}]
ADD = {"type": "function", "function": {"name": "add", "parameters": {}}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), chat=True)


def prompts(folder: Path, *records: Any, name: str = "prompts.jsonl", **more: Any) -> RunSpec:
    file = folder / name
    file.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return spec(folder, more.pop("model", None), prompts=str(file), **more)


def read(folder: Path, *records: Any, **more: Any) -> list[Prompt]:
    return list(read_prompts(prompts(folder, *records, **more)))


def test_tools_are_part_of_the_prompt(tmp_path: Path, model: Path) -> None:
    call = {"function": {"name": "add", "arguments": '{"a": 2}'}}
    talk = [*HI, {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "5"}]  # fmt: skip
    records = [
        {"id": "tools", "messages": HI, "tools": [ADD]},
        {"id": "text", "messages": HI, "tools": json.dumps([ADD["function"]])},
        {"id": "none", "messages": HI},
        {"id": "calls", "messages": talk},
        {"id": "beside a text", "prompt": "hi", "tools": [ADD]},
        {"id": "system", "messages": HI, "system": "Be brief."},
    ]
    _, results = infer(prompts(tmp_path, *records, model=model))
    lengths = {result["id"]: result["prompt_tokens"] for result in results}
    tool = len("<tool>" + json.dumps(ADD) + "\n")
    plain = len("<user>hi\n<assistant>")
    assert lengths["none"] == plain and lengths["tools"] == lengths["text"] == plain + tool
    assert lengths["calls"] == plain + len('<assistant><call>add{"a": 2}\n<tool>5\n')
    assert lengths["system"] == plain + len("<system>Be brief.\n")
    assert "'tools' is given with a text" in results[4]["error"]
    assert results[0]["prompt"][0]["tools"] == [ADD]


def test_a_records_own_sampling_counts(tmp_path: Path, model: Path) -> None:
    records = [
        {"prompt": "one"},
        {"prompt": "one", "max_tokens": 3},
        {"prompt": "one", "max_completion_tokens": 4, "temperature": None},
        {"prompt": "one", "n": 2, "temperature": 1, "seed": 5},
        {"messages": HI, "max_tokens": 2, "logprobs": True, "top_logprobs": 2},
    ]
    metrics, results = infer(prompts(tmp_path, *records, model=model))
    assert [result["completion_tokens"] for result in results] == [6, 3, 4, 6, 6, 2]
    assert [result.get("index") for result in results] == [None, None, None, 0, 1, None]
    whole = results[0]["text"]
    assert whole.startswith(results[1]["text"]) and whole.startswith(results[2]["text"])
    assert results[3]["text"] != results[4]["text"]
    assert [len(one["top"]) for one in results[5]["logprobs"]] == [2, 2]
    assert "logprobs" not in results[0] and metrics["prompts"] == 5
    stop = whole[2:4]
    _, (cut,) = infer(prompts(tmp_path, {"prompt": "one", "stop": stop}, model=model))
    assert (cut["text"], cut["finish_reason"]) == (whole[: whole.index(stop)], "stop")
    assert infer(prompts(tmp_path, *records, model=model))[1] == results


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_tokens": 0}, "max_tokens = 0 must be at least 1"),
        ({"temperature": "hot"}, 'temperature = "hot" must be a number'),
        ({"top_p": 2}, "top_p = 2 must be at least 0 and at most 1"),
        ({"stop": [3]}, "stop.0 = 3 must be text"),
        ({"min_tokens": 7}, "min_tokens = 7 is above max_tokens = 6"),
        ({"logprobs": "yes"}, 'logprobs = "yes" must be'),
        ({"top_logprobs": 2}, "top_logprobs = 2 needs logprobs = true"),
        ({"stream": True}, "stream = true is not offered by batch inference"),
        ({"logit_bias": {"5": 1}}, 'logit_bias = {"5": 1} is not offered'),
        ({"response_format": {"type": "json_object"}}, "'response_format' = "),
        ({"tool_choice": "required"}, "'tool_choice' = \"required\""),
    ],
)
def test_a_field_that_cannot_be_honoured_is_the_prompts_error(
    tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    bad, fine = read(tmp_path, {"id": "x", "messages": HI, **fields}, {"messages": HI})
    assert bad.id == "x" and bad.content == "" and said in str(bad.error)
    assert fine.error is None and fine.content == HI


def test_values_that_say_nothing_change_nothing(tmp_path: Path) -> None:
    columns = {"category": "maths", "stream": False, "logit_bias": {}, "tools": [], "best_of": 1,
               "tool_choice": "auto", "model": "other", "temperature": None}  # fmt: skip
    none = {"tool_choice": "none", "function_call": "none"}
    found, other = read(tmp_path, {"messages": HI, **columns}, {"messages": HI, **none})
    assert found == Prompt(1, HI, spec(tmp_path).inference.sampling)
    assert other == Prompt(2, HI, spec(tmp_path).inference.sampling)
    (refused,) = read(tmp_path, {"messages": HI, "tools": [ADD], "tool_choice": "none"})
    assert "'tool_choice' = \"none\"" in str(refused.error)


def test_lines_of_openais_batch_files(tmp_path: Path) -> None:
    def line(url: str, **body: Any) -> dict[str, Any]:
        return {"custom_id": "r-1", "method": "POST", "url": url, "body": {"model": "m", **body}}

    chats, texts = "/v1/chat/completions", "/v1/completions"
    records = [
        line(chats, messages=HI, tools=[ADD], max_completion_tokens=2, temperature=0.5, user="u"),
        line(texts, prompt="one", stop="x"),
        line(chats, prompt="one"),
        line("/v1/embeddings", input="one"),
        line(chats, messages=HI, reasoning_effort="high"),
        line(chats, messages=HI, nonsense=3),
        {**line(chats, messages=HI), "method": "GET"},
    ]
    found = read(tmp_path, *records)
    assert {prompt.id for prompt in found} == {"r-1"}
    assert found[0].content == [{**HI[0], "tools": [ADD]}]
    assert (found[0].sampling.max_tokens, found[0].sampling.temperature) == (2, 0.5)
    assert (found[1].content, found[1].sampling.stop) == ("one", ("x",))
    for prompt, said in zip(
        found[2:],
        ["the body has no 'messages'", 'url = "/v1/embeddings" is not one of', "'reasoning_effort'",
         "the body has 'nonsense'", 'method = "GET" is not POST'],
        strict=True,
    ):  # fmt: skip
        assert said in str(prompt.error) and prompt.content == ""


def test_json_that_is_one_list_or_lines(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps([{"prompt": "one"}, "two", 3], indent=1))
    found = list(read_prompts(spec(tmp_path, prompts=str(file))))
    assert [prompt.content for prompt in found] == ["one", "two", ""]
    lines = read(tmp_path, {"prompt": "one"}, {"prompt": "two"}, name="lines.json")
    assert [prompt.content for prompt in lines] == ["one", "two"]


def test_columns_of_parquet(tmp_path: Path) -> None:
    """Arrow gives each object the keys of all others, as null; a prompt's nulls and pandas's
    NaN are no values."""
    call = {"function": {"name": "add", "arguments": {"a": 2}}}
    other = {"function": {"name": "find", "arguments": {"city": "Ulm"}}}
    talks = [
        [*HI, {"role": "assistant", "content": None, "tool_calls": [call]}],
        [*HI, {"role": "assistant", "content": "yo", "tool_calls": [other]}],
        HI,
    ]
    table = pa.table({
        "id": ["a", "b", "c"], "messages": talks, "tools": [json.dumps([ADD]), None, None],
        "max_tokens": [2.0, float("nan"), 0.0], "when": pa.array([10**9] * 3, pa.date32()),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "p.parquet")
    a, b, c = read_prompts(spec(tmp_path, prompts=str(tmp_path / "p.parquet")))
    assert a.content[0] == {**HI[0], "tools": [ADD]} and a.sampling.max_tokens == 2
    assert a.content[1]["tool_calls"][0]["function"]["arguments"] == {"a": 2}  # type: ignore[index]
    assert b.content[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Ulm"}  # type: ignore[index]
    assert b.sampling.max_tokens == 6
    assert (c.id, c.error) == ("c", "max_tokens = 0.0 must be at least 1")


def test_a_base_model_drops_no_tools_in_silence(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    records = [{"messages": HI}, {"messages": HI, "tools": [ADD]}]
    _, (plain, tools) = infer(prompts(tmp_path, *records, model=base))
    assert plain["prompt_tokens"] == 2
    assert "the conversation has 'tools', and the tokenizer" in tools["error"]
