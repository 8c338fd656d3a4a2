"""Documents and rejected records are together the records of a file, however odd these are."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Iterator
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
    FileReader,
    OpenAI,
    ShareGPT,
    Text,
)
from easyllm.data.sources.tables import CSV, TSV, HFDatasets, Parquet
from easyllm.spec.roles import Reader, Record, Rejected

RECORDS = 3000
LONGEST = 600
"""Bytes that a record may have; some have more."""

WORDS = ("hello", "", " ", "é", "你好", "\u2028", "\x0b", '"', '""', "a,b", "\t", "'", "\\", "{",
         "<|im_end|>", "\U0001f600", "null", "None", "0", "\ud83d", "x" * 700)  # fmt: skip
KEYS = ("role", "from", "content", "value", "text", "messages", "conversations", "instruction",
        "input", "output", "system", "history", "tools", "functions", "tool_calls", "weight",
        "train", "function_call", "arguments", "name", "thinking", "custom", "id")  # fmt: skip
ROLES = ("user", "assistant", "system", "tool", "human", "gpt", "function_call", "robot", None, 3)


def some(dice: random.Random) -> Any:
    """A value of JSON: mostly none that a chat may have at its place."""
    kind = dice.randrange(12)
    if kind < 5:
        return " ".join(dice.choices(WORDS, k=dice.randrange(4)))
    if kind < 9:
        return dice.choice([None, True, False, 0, 1, -1, 0.5, 1e300, 10**30, "", [], {}])
    if kind == 9:
        return [some(dice) for _ in range(dice.randrange(3))]
    return {dice.choice(KEYS): some(dice) for _ in range(dice.randrange(4))}


def turn(dice: random.Random) -> Any:
    """A message that is often a proper one."""
    if not dice.randrange(8):
        return some(dice)
    odd = not dice.randrange(3)
    names = dice.choice([("role", "content"), ("from", "value")])
    role = dice.choice(ROLES if odd else ROLES[:4])
    made = {names[0]: role, names[1]: some(dice) if odd else dice.choice(WORDS[:6])}
    if odd:
        made[dice.choice(KEYS)] = some(dice)
    return made


def entry(dice: random.Random) -> Any:
    """An object with what the readers look for, proper or not."""
    if not dice.randrange(10):
        return some(dice)
    made = {key: some(dice) for key in KEYS if not dice.randrange(50)}
    talk = [turn(dice) for _ in range(dice.randrange(5))]
    chats = {key: talk for key in ("messages", "conversations") if dice.randrange(8)}
    texts = {
        key: dice.choice(WORDS) for key in ("text", "instruction", "output") if dice.randrange(4)
    }
    return {**made, **chats, **texts}


def damaged(dice: random.Random, line: bytes) -> bytes:
    """A line with, now and then, a byte that is wrong, or the end cut off."""
    at = dice.randrange(len(line) + 1)
    return dice.choice([line, line, line, line[:at], line[:at] + b"\xff" + line[at:],
                        line[:at] + b"\0" + line[at:], b"\xed\xa0\x80" + line])  # fmt: skip


def is_blank(line: bytes) -> bool:
    return not line.decode(errors="replace").strip()


def json_lines(dice: random.Random) -> Iterator[bytes]:
    for _ in range(RECORDS):
        value = json.dumps(entry(dice), ensure_ascii=bool(dice.randrange(2)))
        line = damaged(dice, value.encode("utf-8", "surrogatepass"))
        if dice.randrange(500) == 0:
            line = b"[" * 100_000
        yield (b"?" if is_blank(line) else line) + dice.choice([b"\n", b"\r\n", b"\n\n \t\n"])


def tab_separated(dice: random.Random) -> Iterator[bytes]:
    for _ in range(RECORDS):
        fields = [dice.choice(WORDS).replace("\t", "") for _ in range(1 + dice.randrange(5))]
        line = damaged(dice, "\t".join(fields).encode("utf-8", "surrogatepass"))
        yield (b"?" if is_blank(line) else line) + dice.choice([b"\n", b"\r\n", b"\n\n"])


def paragraphs(dice: random.Random) -> Iterator[bytes]:
    for _ in range(RECORDS):
        lines = [f"a{dice.choice(WORDS)}" for _ in range(1 + dice.randrange(3))]
        text = damaged(dice, "\n".join(lines).encode("utf-8", "surrogatepass"))
        yield (b"?" if is_blank(text) else text) + dice.choice([b"\n\n", b"\r\n \r\n\n", b"\n\t\n"])


def table(delimiter: str) -> Callable[[random.Random], Iterator[bytes]]:
    """Records as ``csv`` writes them, some of several lines, some then damaged.

    Behind a quote that does not close stand a record without any and one that begins with
    one, which shows that the quote before did not close.
    """

    def made(dice: random.Random) -> Iterator[bytes]:
        def record(*fields: str) -> bytes:
            out = io.StringIO()
            quoting = dice.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
            csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator="\n").writerow(
                fields
            )
            return out.getvalue().encode("utf-8", "surrogatepass")

        yield record("id", "text")
        count = 0
        while count < RECORDS:
            count += 1
            text = dice.choice(["", "\n", "\n\n", "\r\n"]).join(dice.choices(WORDS, k=3))
            line = record(str(count), text)
            kind = dice.randrange(12)
            if kind == 0:
                line = record(str(count), text, "more")
            elif kind == 1:
                line = record("alone")
            elif kind < 4:
                at = dice.randrange(len(line))
                line = line[:at] + dice.choice([b"\xff", b"\0"]) + line[at:]
            elif kind == 4:
                line = f'{count}{delimiter}"he said "so""\n'.encode()
            elif kind == 5 and count < RECORDS - 1:
                open_ = f'{count}{delimiter}"open\n{count + 1}{delimiter}fine\n'
                line = f'{open_}"{count + 2}"{delimiter}"it"\n'.encode()
                count += 2
            yield line + (b"" if dice.randrange(9) else b"\n")

    return made


def found(reader: Reader) -> list[Record | Rejected]:
    records = []
    for file in reader.files():
        for record in reader.documents(file):
            assert isinstance(record, Record | Rejected)
            records.append(record)
    return records


def checked(records: list[Record | Rejected], share: float = 0.05) -> None:
    """As many as were written, in order, none twice; some of either kind."""
    lines = [record.line for record in records]
    assert lines == sorted(set(lines))
    assert len(records) == RECORDS
    documents = sum(isinstance(record, Record) for record in records)
    assert share * RECORDS < documents < (1 - share) * RECORDS


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "lines", "reader"),
    [
        ("a.jsonl", json_lines, JSONL),
        ("a.jsonl", json_lines, lambda **more: JSONL(field="messages", **more)),
        ("a.jsonl", json_lines, OpenAI),
        ("a.jsonl", json_lines, ShareGPT),
        ("a.jsonl", json_lines, Alpaca),
        ("a.tsv", tab_separated, Conversations),
        ("a.txt", paragraphs, Text),
        ("a.csv", table(","), CSV),
        ("a.tsv", table("\t"), TSV),
    ],
)
def test_lines(
    tmp_path: Path,
    name: str,
    lines: Callable[[random.Random], Iterator[bytes]],
    reader: Callable[..., FileReader],
    packed: bool,
) -> None:
    content = b"".join(lines(random.Random(f"{name} {packed}")))
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    made = reader(path=str(tmp_path / name), max_record_mb=LONGEST / 1e6)
    whole = found(made)
    checked(whole)
    if not packed and made.separator:
        parts = list(made.parts(tmp_path / name, 20_000, 200) or ())
        assert len(parts) > 3
        assert [record for part in parts for record in made.documents(part)] == whole


@pytest.mark.parametrize(("delimiter", "reader"), [(",", CSV), ("\t", TSV)])
def test_a_tables_documents_are_what_was_written(
    tmp_path: Path, delimiter: str, reader: Callable[..., CSV]
) -> None:
    header, *chunks = table(delimiter)(random.Random(3))
    expected = []
    for chunk in chunks:
        texts = [r[1] for r in csv.reader(io.StringIO(chunk.decode(errors="replace"), newline=""),
                                          delimiter=delimiter) if len(r) == 2]  # fmt: skip
        bad = {b"\xff", b"\0", b"\xed\xa0"} & {
            chunk[i : i + n] for i in range(len(chunk)) for n in (1, 2)
        }
        if b'"open' in chunk:
            expected += ["fine", "it"]
        elif not bad and len(chunk) < LONGEST and b'"so"' not in chunk:
            expected += [text.replace("\r\n", "\n") for text in texts]
    file = tmp_path / "a.csv"
    file.write_bytes(b"".join([header, *chunks]))
    records = found(reader(path=str(file), max_record_mb=LONGEST / 1e6))
    assert [r.document for r in records if isinstance(r, Record)] == expected


@pytest.mark.parametrize("reader", [JSON, OpenAI, ShareGPT, Alpaca])
def test_one_json_text(tmp_path: Path, reader: Callable[..., FileReader]) -> None:
    dice = random.Random(5)
    entries = [entry(dice) for _ in range(RECORDS)]
    (tmp_path / "a.json").write_text(json.dumps(entries))
    checked(found(reader(path=str(tmp_path / "a.json"))))


@pytest.mark.parametrize("kind", ["parquet", "hf_datasets"])
def test_tables_of_arrow(tmp_path: Path, kind: str) -> None:
    if kind == "hf_datasets":
        pytest.importorskip("datasets")
    dice = random.Random(7)
    texts = [None if not dice.randrange(9) else damaged(dice, dice.choice(WORDS[:12]).encode())
             for _ in range(RECORDS)]  # fmt: skip
    talks = [column_of_turns(dice) for _ in range(RECORDS)]
    tools = [dice.choice([None, "", "[]", "[1]", "{", '[{"name": "f"}]']) for _ in range(RECORDS)]
    days = [dice.choice([None, 1, 10**9]) for _ in range(RECORDS)]
    columns = {
        "text": pa.array(texts, pa.binary()).view(pa.string()),
        "chat": pa.array(talks),
        "tools": pa.array(tools),
        "documents": pa.array(days, pa.date32()),
    }
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), file, row_group_size=700)
    for name in ("text", "chat"):
        if kind == "parquet":
            checked(found(Parquet(path=str(file), column=name)))
        else:
            checked(found(HFDatasets(path=str(file), field=name)))


CALLS = [{"name": "f", "arguments": '{"a": 1}'}]


def column_of_turns(dice: random.Random) -> list[dict[str, Any]] | None:
    """Messages of one type, as a column has them."""
    if not dice.randrange(12):
        return None
    texts = [*WORDS[:12], None]
    return [
        {
            "role": dice.choice(["user", "assistant", "tool", "robot", None] if odd else ["user"]),
            "content": dice.choice(texts if odd else WORDS[:6]),
            "weight": dice.choice([None, 0.0, 0.5, 1.0] if odd else [None]),
            "custom": dice.choice([None, "", "x"] if odd else [None]),
            "tool_calls": dice.choice([None, CALLS] if odd else [None]),
        }
        for odd in [not dice.randrange(4) for _ in range(dice.randrange(4))]
    ]  # fmt: skip
