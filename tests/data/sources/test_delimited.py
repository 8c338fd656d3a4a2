"""Each record of a CSV file is a document or a rejected one, whatever its neighbours are."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from easyllm.data.sources.tables import CSV, TSV
from easyllm.errors import UserError
from easyllm.spec.roles import Record

Found = tuple[list[tuple[int, str]], list[tuple[int, str]]]


def read(reader: CSV) -> Found:
    """Line and text of the documents, line and reason of what is rejected."""
    (file,) = reader.files()
    records = list(reader.documents(file))
    assert [r.line for r in records] == sorted(r.line for r in records)
    good = [(r.line, r.document) for r in records if isinstance(r, Record)]
    bad = [(r.line, r.reason) for r in records if not isinstance(r, Record)]
    return good, bad  # type: ignore[return-value]


@pytest.mark.parametrize("wrong", [b"\xff", b"\0", b"\xe2\x82"])
def test_a_bad_byte_costs_its_own_record(tmp_path: Path, wrong: bytes) -> None:
    """Within quotes too, where a line is not a record."""
    file = tmp_path / "a.csv"
    file.write_bytes(
        b'id,text\n1,before\n2,"of, several\nbad' + wrong + b'\nlines"\n3,"after\n""it"""\n'
        b"4" + wrong + b",x\n5,last\n" + wrong + b'\n6,"a' + wrong + b'"\n7,b' + wrong + b"\n"
    )
    good, bad = read(CSV(path=str(file)))
    assert good == [(2, "before"), (6, 'after\n"it"'), (9, "last")]
    assert [line for line, _ in bad] == [3, 8, 10, 11, 12]
    assert bad[0][1].startswith("line 4: ") and "UTF-8" in bad[0][1]
    assert "UTF-8" in bad[1][1] and "line" not in bad[1][1]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"id,te\xffxt", "its header, line 1, cannot be read: not UTF-8 at byte 6"),
        (b"id,te\0xt", "its header, line 1, cannot be read: holds NUL bytes"),
        (b'"id,text', "its header, line 1, cannot be read: a double quote opens and does not"),
        (b"id,text\r1,a\r2,b", "its header, line 1, cannot be read: a carriage return"),
        (b"id,text," + b"x" * 100, "its header, line 1, cannot be read: longer than 90 bytes"),
        (b"id,body", "its header has no column 'text', but id, body"),
        (b"text,id,text", "its header has 2 columns 'text'; give all but one another name"),
    ],
)
def test_a_bad_header_does_not_make_a_record_the_header(
    tmp_path: Path, header: bytes, said: str
) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(header + b"\n1,a\n2,b\n")
    with pytest.raises(UserError) as stopped:
        read(CSV(path=str(file), max_record_mb=9e-5))
    assert f"{file}: {said}" in str(stopped.value)


def test_a_quote_that_does_not_close_costs_its_record_only(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('id,text\n1,a\n2,"open\nmore of it\n3,"b\nc"\n4,"open\n5,d\n6,e\n7,"open')
    good, bad = read(CSV(path=str(file)))
    assert good == [(2, "a"), (5, "b\nc"), (8, "d"), (9, "e")]
    assert [line for line, _ in bad] == [3, 7, 10]
    said = "a double quote opens and does not close as it should, up to line"
    assert [reason for _, reason in bad] == [
        f"{said} 5; reading continues at line 5",
        f"{said} 10; reading continues at line 8",
        "a double quote opens and does not close",
    ]


def test_a_quote_that_does_not_close_is_not_held_for_long(tmp_path: Path) -> None:
    """The rest of a large file is neither held nor lost."""
    import tracemalloc

    file = tmp_path / "a.csv"
    rows = [f"{n},{'words ' * 20}{n}\n" for n in range(50_000)]
    rows[7] = '7,"open\n'
    file.write_text("id,text\n" + "".join(rows))
    reader = CSV(path=str(file), max_record_mb=1)
    tracemalloc.start()
    kinds = [isinstance(record, Record) for record in reader.documents(file)]
    assert tracemalloc.get_traced_memory()[1] < 8e6
    tracemalloc.stop()
    assert kinds.count(False) == 1 and kinds.index(False) == 7 and len(kinds) == 50_000


def test_records_that_are_too_long(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    long, parts = "x" * 100, "y; z\n" * 30
    file.write_text(
        f'id,text\n1,{long}\n2\n3,"{long}\nand ""{long}"""\n4,"{long}"\n5,b\n'
        f'6,"a\n{parts}"\n7,"q, ""r""\ns"\n'
    )
    good, bad = read(CSV(path=str(file), max_record_mb=6e-5))
    assert good[0] == (7, "b") and good[-1] == (40, 'q, "r"\ns')
    assert [line for line, _ in bad] == [2, 3, 4, 6, 8]
    assert "longer than 60 bytes, or a double quote in it does not close" in bad[-1][1]


def test_stray_quotes(tmp_path: Path) -> None:
    """What a field means is never guessed: a quote that is no mark is kept, or rejected."""
    file = tmp_path / "a.tsv"
    file.write_text('text\tid\n5" disks\t1\n"Hi" she said\t2\n"Hi, ""you"""\t3\n"one\ttwo"\t4\n')
    good, bad = read(TSV(path=str(file)))
    assert good == [(2, '5" disks'), (4, 'Hi, "you"'), (5, "one\ttwo")]
    assert bad == [
        (3, "other text follows a closing double quote; where quotes are mere characters, give "
         "the reader's quotes=false")
    ]  # fmt: skip
    good, bad = read(TSV(path=str(file), quotes=False))
    assert good == [(2, '5" disks'), (3, '"Hi" she said'), (4, '"Hi, ""you"""')]
    assert bad == [(5, "3 fields, the header has 2")]


def test_blank_lines_ends_of_lines_and_damage(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    text = b'\xef\xbb\xbf\r\ntext,id\r\n\r\na,1\r\n"b\r\n\r\nc",2\r\nd\re,3\r\n" ",4\r\n'
    file.write_bytes(text)
    good, bad = read(CSV(path=str(file)))
    assert good == [(4, "a"), (5, "b\n\nc"), (9, " ")]
    assert bad == [(8, "a carriage return is outside double quotes")]
    many = b"text,id\n" + b"".join(b'"line\n%d",x\n' % (n * n) for n in range(9000))
    file.write_bytes(gzip.compress(many)[:-4000])
    good, bad = read(CSV(path=str(file)))
    assert good == [(2 * n + 2, f"line\n{n * n}") for n in range(len(good))] and len(good) > 1000
    assert "cut short" in bad[-1][1] and len(bad) <= 2
    file.write_bytes(b"")
    assert read(CSV(path=str(file))) == ([], [])
