from __future__ import annotations

import json
from pathlib import Path

import pytest

from easyllm.data.readers import JSONL, Conversations, PythonDocs, Text
from easyllm.errors import UserError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_text_splits_at_blank_lines_only(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.txt", "\ufeff\n\none\r\ntwo\r\n \t\r\n\r\nthree\u2028four\x0cfive\n\n"
    )
    assert list(Text(path=str(file)).documents(file)) == ["one\ntwo", "three\u2028four\x0cfive"]
    (whole,) = Text(path=str(file), split="file").documents(file)
    assert whole.startswith("one\ntwo") and "three" in whole


def test_text_that_is_not_utf8_names_file_and_remedy(tmp_path: Path) -> None:
    file = write(tmp_path / "latin.txt", "gr\xfc\xdfe".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt.*UTF-8.*iconv"):
        list(Text(path=str(file)).documents(file))


def test_paths_may_be_file_folder_or_pattern(tmp_path: Path) -> None:
    for name in ("b.txt", "sub/a.txt", "c.csv", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, "x")
    found = [tmp_path / "b.txt", tmp_path / "sub/a.txt"]
    assert Text(path=str(tmp_path)).files() == found
    assert Text(path=str(tmp_path / "**/*.txt")).files() == found
    assert Text(path=str(tmp_path / "c.csv")).files() == [tmp_path / "c.csv"]
    for missing in ("d.txt", "*.md"):
        with pytest.raises(FileNotFoundError, match="no "):
            Text(path=str(tmp_path / missing)).files()
    with pytest.raises(FileNotFoundError, match=r"\*\.jsonl"):
        JSONL(path=str(tmp_path)).files()


def test_jsonl_holds_texts_or_conversations(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    file = write(tmp_path / "a.jsonl", json.dumps({"t": "x"}) + "\n\n" + json.dumps({"t": turns}))
    assert list(JSONL(path=str(file), field="t").documents(file)) == ["x", turns]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "cut', "not JSON"),
        ('{"body": "x"}', "no field 'text'.*body"),
        ('{"text": 5}', "'text' is neither a text"),
        ('{"text": [{"role": "robot", "content": "x"}]}', "'text' is neither a text"),
    ],
)
def test_a_bad_jsonl_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    file = write(tmp_path / "a.jsonl", f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(UserError, match=rf"a\.jsonl, line 2: {reason}"):
        list(JSONL(path=str(file)).documents(file))


def test_conversations_take_turns(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", "q1\ta1\tq2\ta2\n\nq\ta\n")
    first, second = Conversations(path=str(file)).documents(file)
    assert [m["role"] for m in first] == ["user", "assistant"] * 2
    assert [m["content"] for m in first] == ["q1", "a1", "q2", "a2"]
    assert len(second) == 2
    write(file, "q\ta\nq1\ta1\tq2\n")
    with pytest.raises(UserError, match=r"a\.tsv, line 2: 3 .*even"):
        list(Conversations(path=str(file)).documents(file))


def test_python_docs_need_nothing() -> None:
    reader = PythonDocs()
    (file,) = reader.files()
    documents = list(reader.documents(file))
    assert len(documents) > 50
    assert sum(map(len, documents)) > 300_000
    assert documents == list(reader.documents(file))
