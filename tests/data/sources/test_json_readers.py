"""Readers of JSON and JSON Lines, whatever name the file has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from easyllm.data.sources.readers import (
    JSON,
    JSONL,
    OpenAI,
)
from tests.data.sources.reading import QA, read, write


def test_jsonl_holds_texts_or_conversations(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", json.dumps({"t": "x"}) + "\n\n" + json.dumps({"t": QA}))
    assert read(JSONL(path=str(tmp_path), field="t")) == (["x", QA], [])
    write(tmp_path / "empty.jsonl", "")
    assert read(JSONL(path=str(tmp_path / "empty.jsonl"))) == ([], [])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', "not JSON"),
        (b'["x"]', "it is a list, not an object; a file that is one list is named .json"),
        (b'{"body": "x"}', "no field 'text' (it has: body)"),
        (b'{"text": 5}', "'text' is a number, 5, neither a text nor a conversation"),
        (b'{"text": null}', "'text' is null"),
        (b'{"text": []}', "a conversation is a list of messages, not an empty list"),
        (b'{"text": [{"role": "robot", "content": "x"}]}', 'message 1: its role is "robot"'),
        (b'{"text": "a", "text": "b"}', "the key 'text' occurs twice"),
        (b'{"text": "gr\xfc\xdfe"}', "not UTF-8"),
        (b'{"text": "\0"}', "NUL"),
        (b'{"text": "\\ud83d"}', "half of a surrogate pair"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_jsonl_line_is_rejected_alone(tmp_path: Path, line: bytes, reason: str) -> None:
    write(tmp_path / "a.jsonl", b'{"text": "fine"}\n' + line + b'\n{"text": "too"}\n')
    good, ((number, why),) = read(JSONL(path=str(tmp_path)))
    assert good == ["fine", "too"] and number == 2 and reason in why


def test_json_is_a_list_or_an_object_of_lists(tmp_path: Path) -> None:
    write(tmp_path / "a.json", json.dumps([{"text": "a"}, 5, {"text": "b"}]))
    assert read(JSON(path=str(tmp_path))) == (["a", "b"], [(2, "it is a number, not an object")])
    write(tmp_path / "a.json", json.dumps({"text": ["a", "b"], "id": [1, 2]}))
    assert read(JSON(path=str(tmp_path))) == (["a", "b"], [])
    write(tmp_path / "a.json", json.dumps({"text": "a", "id": 1}, indent=1))
    assert read(JSON(path=str(tmp_path))) == (["a"], [])
    for bad in ({"text": ["a"], "id": []}, "x", {"body": "a"}):
        write(tmp_path / "a.json", json.dumps(bad))
        good, rejected = read(JSON(path=str(tmp_path)))
        assert not good and len(rejected) == 1


def test_json_lines_under_the_name_json(tmp_path: Path) -> None:
    """``datasets`` and pandas write such files, and ``datasets`` reads them."""
    file = tmp_path / "lines.json"
    for reader in (JSON, JSONL):
        write(file, '\n{"text": "a"}\n\n{"text": "b"}\noops\n')
        assert read(reader(path=str(file))) == (
            ["a", "b"], [(5, "not JSON: Expecting value: line 1 column 1 (char 0)")],
        )  # fmt: skip
        write(file, 'oops\n{"text": "a"}\n{"text": "b"}\n')
        good, ((line, _),) = read(reader(path=str(file)))
        assert good == ["a", "b"] and line == 1
        write(file, '{"text": "one alone"}')
        assert read(reader(path=str(file))) == (["one alone"], [])
    write(file, json.dumps({"messages": QA}) + "\n")
    assert read(OpenAI(path=str(file))) == ([QA], [])
    for indent in (None, 1):
        write(file, json.dumps({"messages": [QA, QA]}, indent=indent))
        assert read(OpenAI(path=str(file))) == ([QA, QA], [])
        write(file, json.dumps([{"text": "a"}], indent=indent))
        assert read(JSON(path=str(file))) == (["a"], [])
    write(file, '[{"text": "a"},\n{"text": "b"},\n')
    _, ((line, reason),) = read(JSON(path=str(file)))
    assert line == 1 and "not JSON" in reason


def test_many_json_lines_under_the_name_json_are_not_held(tmp_path: Path) -> None:
    import tracemalloc

    line = json.dumps({"text": "words " * 200}) + "\n"
    file = write(tmp_path / "a.json", line * 20_000)
    reader = JSON(path=str(file))
    tracemalloc.start()
    assert sum(1 for _ in reader.documents(file)) == 20_000
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()


def test_a_list_under_the_name_jsonl_is_told_its_name(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", json.dumps([{"text": "a"}]))
    assert read(JSONL(path=str(file)))[1] == [
        (1, "it is a list, not an object; a file that is one list is named .json")
    ]
    write(file, json.dumps([{"text": "a"}], indent=1))
    assert "a file that is one list is named .json" in read(JSONL(path=str(file)))[1][0][1]
