from __future__ import annotations

import gzip
import json
import lzma
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from easyllm.data.sources.readers import (
    JSON,
    JSONL,
    Alpaca,
    Conversations,
    OpenAI,
    PythonDocs,
    ShareGPT,
    Text,
)
from easyllm.data.sources.tables import CSV, TSV, HFDatasets, Parquet
from easyllm.data.sources.work_units import checked
from easyllm.dispatcher.summary import made_by
from easyllm.errors import UserError
from easyllm.spec.problems import SpecError
from tests.data.conftest import Spec, work
from tests.data.sources.reading import QA, read, write
from tests.support import run_spec


def test_text_splits_at_blank_lines_only(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.txt", "\ufeff\n\none\r\ntwo\r\n \t\r\n\r\nthree\u2028four\x0cfive\n\n"
    )
    assert read(Text(path=str(file))) == (["one\ntwo", "three\u2028four\x0cfive"], [])
    ((whole,), _) = read(Text(path=str(file), split="file"))
    assert whole.startswith("one\ntwo") and whole.endswith("five")


def test_text_splits_at_lines_that_match(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "a\n\nb\n=====\n=====\nc\n")
    assert read(Text(path=str(file), split="pattern", pattern="^=+$"))[0] == ["a\n\nb", "c"]
    for wrong in ({"split": "pattern"}, {"pattern": "x"}, {"split": "pattern", "pattern": "("}):
        source = {"_target_": "easyllm.data.sources.readers.Text", "path": str(file), **wrong}
        with pytest.raises((SpecError, AssertionError)):
            run = run_spec(tmp_path, {"data": {"sources": {"a": source}}})
            assert not list(run.data.sources["a"].problems("data.sources.a", run))


def test_bad_text_is_rejected_by_document(tmp_path: Path) -> None:
    content = b"one\n\ntwo\ngr\xfc\xdfe\nmore\n\nthree\n\nn\0l\n\nfour " + b"x" * 50 + b"\n\nfive\n"
    file = write(tmp_path / "latin.txt", content)
    good, bad = read(Text(path=str(file), max_record_mb=4e-5))
    assert good == ["one", "three", "five"]
    assert [line for line, _ in bad] == [4, 9, 11]
    for (_, reason), expected in zip(bad, ("not UTF-8 at byte 3", "NUL", "longer"), strict=True):
        assert expected in reason
    lines = write(tmp_path / "long.txt", "ab\n" * 30 + "\nfine")
    assert read(Text(path=str(lines), max_record_mb=4e-5)) == (
        ["fine"], [(1, "longer than 40 bytes")],
    )  # fmt: skip


def test_a_line_of_100_mb_is_skipped_in_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    file = write(tmp_path / "a.jsonl", b'{"text": "')
    with file.open("ab") as handle:
        for _ in range(100):
            handle.write(b"x" * 1_000_000)
        handle.write(b'"}\n{"text": "fine"}\n')
    tracemalloc.start()
    good, bad = read(JSONL(path=str(file), max_record_mb=1))
    assert tracemalloc.get_traced_memory()[1] < 8e6
    tracemalloc.stop()
    assert good == ["fine"] and bad == [(1, "longer than 1,000,000 bytes")]


def test_paths_may_be_file_folder_or_pattern(tmp_path: Path) -> None:
    for name in ("b.txt", "sub/a.txt.gz", "c.csv", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, "x")
    found = [tmp_path / "b.txt", tmp_path / "sub/a.txt.gz"]
    assert Text(path=str(tmp_path)).files() == found
    assert Text(path=str(tmp_path / "**/*.txt*")).files() == found
    assert Text(path=str(tmp_path / "c.csv")).files() == [tmp_path / "c.csv"]
    for missing in ("d.txt", "*.md"):
        with pytest.raises(FileNotFoundError, match="no "):
            Text(path=str(tmp_path / missing)).files()
    with pytest.raises(FileNotFoundError, match=r"\*\.jsonl"):
        JSONL(path=str(tmp_path)).files()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


LINES = "".join(json.dumps({"text": f"text {n * n}"}) + "\n" for n in range(20_000)).encode()


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstd)]
)
def test_compressed_files_are_known_by_their_content(tmp_path: Path, suffix: str, pack) -> None:
    packed = pack(LINES)
    write(tmp_path / f"a.jsonl{suffix}", packed)
    good, bad = read(JSONL(path=str(tmp_path)))
    assert len(good) == 20_000 and good[-1] == f"text {19_999**2}" and not bad
    write(tmp_path / "misnamed.jsonl", packed)
    assert read(JSONL(path=str(tmp_path / "misnamed.jsonl")))[0] == good
    cut = write(tmp_path / "cut.jsonl", packed[: len(packed) // 2])
    some, bad = read(JSONL(path=str(cut)))
    assert some == good[: len(some)]
    ((line, reason),) = bad
    assert line == len(some) + 1 and ("cut short" in reason or "not JSON" in reason)


def test_files_behind_urls(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe({"/talk/a.jsonl": LINES[:200], "/talk/b.jsonl.gz": gzip.compress(LINES)})
    good, bad = read(JSONL(path="memory://talk"))
    assert len(good) > 20_000 and len(bad) == 1
    assert len(read(JSONL(path="memory://talk/*.gz"))[0]) == 20_000
    write(tmp_path / "a.jsonl", LINES)
    assert len(read(JSONL(path=f"file://{tmp_path}/a.jsonl"))[0]) == 20_000
    with pytest.raises(FileNotFoundError, match="memory://none"):
        JSONL(path="memory://none").files()


def test_names_in_capitals(tmp_path: Path) -> None:
    for name in ("A.JSONL", "b.Jsonl.GZ", "c.TXT"):
        write(tmp_path / name, LINES[:200].rpartition(b"\n")[0])
    assert JSONL(path=str(tmp_path)).files() == [tmp_path / "A.JSONL", tmp_path / "b.Jsonl.GZ"]
    write(tmp_path / "D.JSON", json.dumps([{"text": "a"}]))
    assert read(JSON(path=str(tmp_path))) == (["a"], [])
    pytest.importorskip("datasets")
    assert len(read(HFDatasets(path=str(tmp_path / "A.JSONL")))[0]) > 5


def test_tables(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", b'id,text\n1,"a, ""b""\nc"\n2\n3,gr\xfc\n\n4,d\n')
    good, bad = read(CSV(path=str(tmp_path)))
    assert good == ['a, "b"\nc', "d"]
    assert [line for line, _ in bad] == [4, 5]
    write(tmp_path / "a.tsv", "text\tid\nx\t1\n")
    assert read(TSV(path=str(tmp_path)))[0] == ["x"]
    with pytest.raises(UserError, match=r"a\.tsv: its header has no column 'body', but text, id"):
        read(TSV(path=str(tmp_path), column="body"))
    table = pa.table({"text": ["a", None, "b"], "chat": [QA, QA[:1], None]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(Parquet(path=str(tmp_path)))[0] == ["a", "b"]
    assert read(Parquet(path=str(tmp_path), column="chat"))[0] == [QA, QA[:1]]
    with pytest.raises(UserError, match=r"no column 'body', but text, chat"):
        read(Parquet(path=str(tmp_path), column="body"))
    write(tmp_path / "a.parquet", (tmp_path / "a.parquet").read_bytes()[:-20])
    assert "damaged" in read(Parquet(path=str(tmp_path)))[1][0][1]


def test_parquet_values_that_python_has_no_type_for(tmp_path: Path) -> None:
    """pyarrow 26.0.1 raises OverflowError for such dates, and ValueError for bad UTF-8."""
    bad = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    talk = [QA, QA, QA]
    table = pa.table({
        "text": bad, "day": pa.array([1, 10**9, None], pa.date32()), "chat": talk,
        "documents": pa.array([None, 10**15, None], pa.timestamp("s")),
        "price": [None, None, Decimal("1.5")],
    })  # fmt: skip
    file = tmp_path / "a.parquet"
    pq.write_table(table, file)
    readers: list[Any] = [lambda name: Parquet(path=str(file), column=name)]
    try:
        import datasets  # noqa: F401

        readers.append(lambda name: HFDatasets(path=str(file), field=name))
    except ImportError:
        pass
    for reader in readers:
        good, ((line, reason),) = read(reader("text"))
        assert good == ["a", "c"] and line == 2 and "'text' is not UTF-8" in reason
        # beside a conversation; a column that nothing is read from costs nothing
        good, ((line, reason),) = read(reader("chat"))
        assert good == [QA, QA] and line == 2
        assert "'documents' holds what Python has no type for" in reason
        for name in ("day", "price"):
            good, reasons = read(reader(name))
            assert not good and [line for line, _ in reasons] == [1, 2, 3]
    assert "a date, " in read(readers[0]("day"))[1][0][1]
    pq.write_table(table.append_column("text", bad), file)
    with pytest.raises(UserError, match="has 2 columns 'text'; rename all but one"):
        read(Parquet(path=str(file)))


def test_datasets_are_streamed(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    import datasets

    write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": "b"}\n')
    assert read(HFDatasets(path=str(tmp_path / "a.jsonl")))[0] == ["a", "b"]
    datasets.Dataset.from_dict({"chat": [QA]}).save_to_disk(tmp_path / "saved")
    assert read(HFDatasets(path=str(tmp_path / "saved"), field="chat"))[0] == [QA]
    with pytest.raises(UserError, match="no column 'text', but chat"):
        read(HFDatasets(path=str(tmp_path / "saved")))


def test_conversations_take_turns(tmp_path: Path) -> None:
    write(tmp_path / "a.tsv", "q1\ta1\tq2\ta2\n\nq\ta\nq1\ta1\tq2\n")
    (first, second), ((line, reason),) = read(Conversations(path=str(tmp_path)))
    assert [m["role"] for m in first] == ["user", "assistant"] * 2
    assert [m["content"] for m in first] == ["q1", "a1", "q2", "a2"]
    assert len(second) == 2
    assert line == 4 and "even" in reason


def test_chats_in_published_shapes(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    turns = [{"role": "user", "content": parts}, call, {"role": "tool", "content": "4"}, QA[1]]
    entry = {"messages": turns, "tools": [{"name": "f"}]}
    write(tmp_path / "openai.jsonl", json.dumps(entry) + '\n{"messages": []}\n')
    ((found,), bad) = read(OpenAI(path=str(tmp_path / "openai.jsonl")))
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert found[0] == {"role": "user", "content": "hi", "tools": tools}
    calls = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    assert found[1] == {"role": "assistant", "content": "", "tool_calls": calls}
    assert [m["role"] for m in found] == ["user", "assistant", "tool", "assistant"]
    assert [line for line, _ in bad] == [2]

    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
    write(tmp_path / "share.json", json.dumps([{"conversations": talk, "system": "s"}]))
    system = {"role": "system", "content": "s"}
    assert read(ShareGPT(path=str(tmp_path / "share.json"))) == ([[system, *QA]], [])

    task = {"instruction": "add", "input": "1 2", "output": "3", "history": [["hi", "yo"]]}
    write(tmp_path / "alpaca.json", json.dumps([task, {"instruction": "x"}]))
    (found,), bad = read(Alpaca(path=str(tmp_path / "alpaca.json")))
    assert [m["content"] for m in found] == ["hi", "yo", "add\n1 2", "3"]
    assert bad == [(2, "no field 'output' (it has: instruction)")]


@pytest.mark.parametrize(("size", "rows"), [(64, 1000), (500, 3), (1 << 20, 2)])
def test_parts_hold_what_the_file_holds(tmp_path: Path, size: int, rows: int) -> None:
    texts = [f"line {n}\nof {'x' * (n % 90)}" for n in range(40)]
    text = write(tmp_path / "a.txt", "\ufeff" + "\n \r\n\n".join(texts) + "\n\nb\xff")
    jsonl = write(
        tmp_path / "a.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in texts) + "oops\n{}"
    )
    for reader, file in ((Text(path=str(text)), text), (JSONL(path=str(jsonl)), jsonl)):
        whole = list(checked(reader, file))
        parts = list(reader.parts(file, size, rows) or ())
        assert len(parts) > 5 and parts[0].start == 0 and parts[-1].end == file.stat().st_size
        pieces = [list(checked(reader, part)) for part in parts]
        assert [record for piece in pieces for record in piece] == whole
        assert max(map(len, pieces)) <= rows
    assert JSONL(path="").parts(write(tmp_path / "z", gzip.compress(b"x")), size, rows) is None
    assert Text(path="", split="file").parts(text, size, rows) is None


def test_rejected_records_are_listed_and_limited(spec: Spec, tmp_path: Path) -> None:
    lines = ["q\ta", "q", "q\ta\tb\tc", "\udc80".encode("utf-8", "surrogateescape"), "q\t"]
    content = b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines)
    file = write(tmp_path / "bad.tsv", content)
    made = []
    for workers in (1, 2):
        sources = {"dialogues": {"path": str(file)}}
        data = {"sources": sources, "workers": workers, "rows_per_file": 1}
        (metrics,) = work(spec(tmp_path / str(workers), data=data), "tokenize")
        assert metrics["rejected"] == 3
        assert "3 rejected (rejected.jsonl)" in made_by("tokenize", metrics)
        made.append((tmp_path / str(workers) / "store/tokens/rejected.jsonl").read_text())
    assert made[0] == made[1]
    entries = [json.loads(line) for line in made[0].splitlines()]
    assert [(e["source"], e["file"], e["line"]) for e in entries] == [
        ("dialogues", str(file), line) for line in (2, 4, 5)
    ]
    assert entries[2]["reason"] == "the conversation has no answer to train"
    data = {"sources": {"dialogues": {"path": str(file)}}, "max_bad_records": 1}
    with pytest.raises(
        UserError, match=r"max_bad_records=1 .*\n.*bad\.tsv, line 2.*\n.*line 4: not U"
    ):
        work(spec(tmp_path / "over", data=data), "tokenize")


def test_python_docs_need_nothing() -> None:
    reader = PythonDocs()
    documents, bad = read(reader)
    assert len(documents) > 50 and not bad
    assert sum(map(len, documents)) > 300_000
    assert documents == read(reader)[0]
