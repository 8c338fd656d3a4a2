"""Published chats through every reader that takes them, to the tokens of a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from easyllm.data.sources.readers import JSON, JSONL, Alpaca, OpenAI, ShareGPT
from easyllm.data.sources.tables import HFDatasets, Parquet
from easyllm.spec.schema import write
from tests.data.conftest import work
from tests.data.sources.test_readers import read
from tests.data.test_stages import documents
from tests.support import run_spec

TOOLS = """
{%- if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}
{%- for m in messages %}<{{ m.role }}>
{%- if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}
{%- for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{{ '<end>' }}
{%- endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""

ADD = {"type": "function", "function": {"name": "add", "parameters": {"a": {"type": "integer"}}}}
ASKED = {"role": "user", "content": "2 and 3?"}
CALL = {"id": "c1", "type": "function",
        "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}  # fmt: skip
CHAT = [
    ASKED,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "5"},
    {"role": "assistant", "content": "It is 5."},
]
SAID = (
    f"<tools>[{json.dumps(ADD)}]</tools><user>2 and 3?<end><assistant>"
    '⟦{"name": "add", "arguments": {"a": 2, "b": 3}}<end>⟧<tool>5<end><assistant>⟦It is 5.<end>⟧'
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of bytes whose template words tools, calls and thoughts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={piece: n for n, piece in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")
    tokenizer.chat_template = TOOLS
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


def stored(tmp_path: Path, tokenizer: Path, reader: Any) -> tuple[list[str], list[str]]:
    """The documents of a store as text, what is trained between ⟦ and ⟧; and its rejects."""
    place = tmp_path / "made"
    data = {
        "sources": {"chats": write(reader)},
        "tokenizer": {
            "_target_": "easyllm.data.tokenizers.components.Pretrained",
            "path": str(tokenizer),
        },
        "seq_len": 64,
        "workers": 1,
    }
    work(run_spec(place, {"data": data}), "tokenize")
    made = documents(place / "store", "tokenize", "chats")
    decode = PreTrainedTokenizerFast.from_pretrained(tokenizer).decode
    texts = []
    for start, end in zip(made.offsets[:-1], made.offsets[1:], strict=True):
        text, within = "", False
        runs: list[tuple[bool, list[int]]] = []
        for token, trained in zip(made.ids[start:end], made.trained[start:end], strict=True):
            if not runs or runs[-1][0] != trained:
                runs.append((bool(trained), []))
            runs[-1][1].append(int(token))
        for within, ids in runs:
            text += f"⟦{decode(ids)}⟧" if within else decode(ids)
        texts.append(text)
    rejected = place / "store/tokens/rejected.jsonl"
    lines = rejected.read_text("utf-8").splitlines() if rejected.exists() else []
    return texts, [json.loads(line)["reason"] for line in lines]


def jsonl(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return str(path)


def objects(chat: Any) -> Any:
    """A chat with its calls' arguments as objects, which all records of a table share."""
    text = json.dumps(chat)
    return json.loads(text.replace(json.dumps(CALL["function"]["arguments"]), '{"a": 2, "b": 3}'))


@pytest.mark.parametrize("form", ["text", "object"])
@pytest.mark.parametrize(
    "shape", ["openai", "jsonl", "json", "parquet", "hf_datasets", "hf_parquet", "saved",
              "functions", "sharegpt"]
)  # fmt: skip
def test_tools_and_calls_through_every_reader(
    tmp_path: Path, folder: Path, shape: str, form: str
) -> None:
    chat = CHAT if form == "text" else objects(CHAT)
    # another tool's call and tools, whose keys arrow gives to all
    other = json.loads(json.dumps(chat).replace("add", "find").replace("b", "city"))
    tools = json.dumps([ADD]) if form == "text" else [ADD]
    none = json.dumps([]) if form == "text" else []
    records = [
        {"id": 1, "messages": chat, "tools": tools},
        {"id": 2, "messages": other, "tools": none},
        {"id": 3, "messages": [ASKED, {"role": "assistant", "content": "5"}], "tools": None},
    ]
    path = str(tmp_path / "chats")
    if shape in ("parquet", "hf_parquet"):
        path += ".parquet"
        pq.write_table(pa.Table.from_pylist(records), path)
    elif shape == "saved":
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_list(records).save_to_disk(path)
    elif shape == "json":
        path += ".json"
        Path(path).write_text(json.dumps(records))
    elif shape == "functions":
        path = jsonl(tmp_path / "a.jsonl", *map(legacy, records))
    elif shape == "sharegpt":
        path = jsonl(tmp_path / "a.jsonl", *map(sharegpt, records))
    else:
        path = jsonl(tmp_path / "a.jsonl", *records)
    reader = {
        "openai": OpenAI(path=path),
        "functions": OpenAI(path=path),
        "sharegpt": ShareGPT(path=path),
        "json": JSON(path=path, field="messages"),
        "jsonl": JSONL(path=path, field="messages"),
        "parquet": Parquet(path=path, column="messages"),
    }.get(shape, HFDatasets(path=path, field="messages"))
    texts, rejected = stored(tmp_path, folder, reader)
    without = SAID[SAID.index("<user>") :].replace("add", "find").replace("b", "city")
    assert texts == [SAID, without, "<user>2 and 3?<end><assistant>⟦5<end>⟧"]
    assert rejected == []


def legacy(record: Any) -> Any:
    """The record as OpenAI wrote it before there were tools."""
    messages = []
    for message in record["messages"]:
        new = {key: value for key, value in message.items() if key not in ("tool_calls",)}
        if "tool_calls" in message:
            new |= {"content": "", "function_call": message["tool_calls"][0]["function"]}
        if message["role"] == "tool":
            new = {"role": "function", "name": "add", "content": message["content"]}
        messages.append(new)
    tools = record["tools"]
    tools = json.loads(tools) if isinstance(tools, str) else tools or []
    return {"messages": messages, "functions": [tool["function"] for tool in tools]}


def sharegpt(record: Any) -> Any:
    """The record as LLaMA-Factory writes it."""
    names = {"user": "human", "assistant": "gpt", "tool": "observation"}
    turns = []
    for message in record["messages"]:
        turn = {"from": names[message["role"]], "value": message["content"]}
        if "tool_calls" in message:
            function = dict(message["tool_calls"][0]["function"])
            if isinstance(function["arguments"], str):
                function["arguments"] = json.loads(function["arguments"])
            turn = {"from": "function_call", "value": json.dumps(function)}
        turns.append(turn)
    return {"conversations": turns, "tools": record["tools"], "system": ""}


def test_records_that_differ_in_kind_through_datasets(tmp_path: Path, folder: Path) -> None:
    """Arguments as text beside arguments as objects, of which arrow makes no one type."""
    pytest.importorskip("datasets")
    records = [{"messages": CHAT, "tools": [ADD]}, {"messages": objects(CHAT), "tools": [ADD]}]
    path = jsonl(tmp_path / "a.jsonl", *records)
    texts, _ = stored(tmp_path, folder, HFDatasets(path=path, field="messages"))
    assert texts == [SAID, SAID]


def test_a_null_that_a_call_gives_is_kept_where_it_can_be_told(tmp_path: Path) -> None:
    call = {"name": "find", "arguments": {"city": None, "near": [None, "Ulm"]}}
    chat = [ASKED, {"role": "assistant", "tool_calls": [call]}]
    said = {**call, "arguments": json.dumps(call["arguments"])}
    text = [ASKED, {"role": "assistant", "tool_calls": [said]}]

    def arguments(reader: Any) -> Any:
        ((found,), _) = read(reader)
        return found[1]["tool_calls"][0]["function"]["arguments"]

    path = jsonl(tmp_path / "a.jsonl", {"messages": chat})
    assert arguments(OpenAI(path=path)) == call["arguments"]
    for messages, expected in ((text, call["arguments"]), (chat, {"near": [None, "Ulm"]})):
        pq.write_table(pa.table({"messages": [messages]}), tmp_path / "a.parquet")
        assert arguments(Parquet(path=str(tmp_path / "a.parquet"), column="messages")) == expected


def test_only_answers_that_are_to_be_trained_are(tmp_path: Path, folder: Path) -> None:
    def talk(**more: Any) -> Any:
        wrong = {"role": "assistant", "content": "WRONG", **more}
        again = {"role": "user", "content": "Try again."}
        return {
            "messages": [ASKED, wrong, again, {"role": "assistant", "content": "5", "weight": 1}]
        }

    untrained = [{"weight": 0}, {"train": False}, {"loss": False}, {"weight": 0.0, "train": None}]
    path = jsonl(
        tmp_path / "a.jsonl", *(talk(**more) for more in untrained), talk(weight=1),
        talk(weight=0.5), talk(train_on="no"),
        {"messages": [ASKED, {"role": "assistant", "content": "5", "weight": 0}]},
        {"messages": [ASKED, {"role": "assistant", "content": "5", "thinking": "2, 3"}]},
    )  # fmt: skip
    texts, rejected = stored(tmp_path, folder, OpenAI(path=path))
    begun = "<user>2 and 3?<end><assistant>"
    then = "<end><user>Try again.<end><assistant>⟦5<end>⟧"
    assert texts == [
        *[f"{begun}WRONG{then}"] * 4,
        f"{begun}⟦WRONG<end>⟧{then.removeprefix('<end>')}",
        f"{begun}⟦(2, 3)5<end>⟧",
    ]
    assert len(rejected) == 3
    assert "message 2: it has the key 'weight' = 0.5" in rejected[0]
    assert (
        "message 2: it has the key 'train_on' = \"no\", whose meaning is not known" in rejected[1]
    )
    assert rejected[2] == "the conversation has no answer to train"


def test_keys_that_are_to_be_ignored(tmp_path: Path) -> None:
    chat = [{**ASKED, "mood": "glad"}, {"role": "assistant", "content": "5"}]
    record = {"messages": chat, "category": "maths", "chat_template_kwargs": {"x": 1}}
    path = jsonl(tmp_path / "a.jsonl", record)
    _, ((_, why),) = read(OpenAI(path=path))
    assert "the key 'mood' = \"glad\"" in why and "name it in the reader's ignored_keys" in why
    _, ((_, why),) = read(OpenAI(path=path, ignored_keys=("mood",)))
    assert "the record has 'chat_template_kwargs' = {\"x\": 1}" in why
    ignored = ("mood", "chat_template_kwargs")
    assert read(OpenAI(path=path, ignored_keys=ignored)) == ([[ASKED, chat[1]]], [])
    assert read(JSONL(path=path, field="messages", ignored_keys=ignored))[1] == []


def test_sharegpt_and_its_kin(tmp_path: Path) -> None:
    def turn(speaker: str, value: Any, **more: Any) -> dict[str, Any]:
        return {"from": speaker, "value": value, **more}

    hi, hello = turn("human", "Hi"), turn("gpt", "Hello")
    path = jsonl(
        tmp_path / "a.jsonl",
        {"conversations": [turn("system", "First"), hi, hello], "system": "Second"},
        {"conversations": [hi, turn("gpt", None)]},
        {"conversations": []},
        {"conversations": [turn("human", "Hi", loss=True), turn("gpt", "Hello", loss=False)]},
        {"conversations": [{"role": "user", "content": "a", "value": "b"}, hello]},
        {"conversations": [turn("Human", "Hi"), turn("Assistant", "Hello")]},
        {"conversations": [hi, hello], "system": {"a": 1}},
        {"conversations": [hi, {**hello, "weight": 1.0, "markdown": None}], "system": None},
    )
    good, bad = read(ShareGPT(path=path))
    plain = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    empty = {"role": "assistant", "content": "", "train": False}
    assert good == [[plain[0], empty], plain, plain]
    for (line, why), (expected, said) in zip(
        bad,
        [(1, "different system prompts"), (3, "not an empty list"), (4, "to be trained, by loss"),
         (5, "it has both 'content' = \"a\" and 'value' = \"b\""), (7, "'system' is an object")],
        strict=True,
    ):  # fmt: skip
        assert line == expected and said in why


def test_alpaca(tmp_path: Path, folder: Path) -> None:
    task = {"instruction": "Do", "input": "", "output": "o1"}
    records = [
        {**task, "instruction": "", "input": "Only an input"},
        {**task, "output": ""},
        {**task, "input": "this", "system": "Be brief.", "history": [["q", "a"], ["r", ""]]},
        {**task, "input": None, "system": None, "history": None},
        {**task, "instruction": None},
        {**task, "input": {"a": 1}},
        {**task, "output": None},
        {**task, "system": 3},
        {**task, "input": 0},
        {**task, "history": [["q", None]]},
        {**task, "history": {"q": "a"}},
    ]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(records))
    texts, rejected = stored(tmp_path, folder, Alpaca(path=str(file)))
    assert texts == [
        "<user>Only an input<end><assistant>⟦o1<end>⟧",
        "<system>Be brief.<end><user>q<end><assistant>⟦a<end>⟧<user>r<end><assistant><end>"
        "<user>Do\nthis<end><assistant>⟦o1<end>⟧",
        "<user>Do<end><assistant>⟦o1<end>⟧",
    ]
    assert rejected == [
        "the conversation has no answer to train",
        "'instruction' is null, not a text",
        "'input' is an object, {\"a\": 1}, not a text",
        "'output' is null, not a text",
        "'system' is a number, 3, not a text",
        "'input' is a number, 0, not a text",
        "'history' is null, not a text",
        "'history' is no list of [question, answer]",
    ]
