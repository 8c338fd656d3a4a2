"""Stores of the original project go through every data stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from easyllm.data.dataset.rows import open_rows
from easyllm.data.store import manifest, shards
from easyllm.data.store.shards import Shard, join
from easyllm.errors import UserError
from easyllm.paths import StorePaths
from tests.data.conftest import Spec, work

EOS = 0
"""End of sequence and padding of the tokenizers trained here."""


def write(file: Path, rows: list[list[int]], labels: list[list[int]] | None, crc: str) -> None:
    columns = {"input_ids": rows} | ({"labels": labels} if labels else {})
    kind = pa.list_(pa.int32())
    table = pa.table({name: pa.array(value, kind) for name, value in columns.items()})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, compression="gzip")
    file.with_name(f".{file.name.removesuffix('.gzip.parquet')}.crc").write_text(crc)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """Two data sets in the original's tree: padded texts, and conversations with labels."""
    root = tmp_path / "datasets"
    news, talk = root / "news_T/news-part-00", root / "talk_T/talk-part-00"
    texts = [
        [5, 6, 7, EOS, EOS, EOS],
        [9, EOS, 8, 4, 3, 2],
        [EOS] * 6,
        [11, EOS, EOS, EOS, EOS, EOS],
    ]
    write(news / "news-part-00-part-00000.gzip.parquet", texts, None, "4 6 1 1")
    turns = [[20, 21, 22, EOS, EOS, EOS], [30, 31, 32, 33, 34, EOS], [40, EOS, 41, EOS, EOS, EOS]]
    labels = [[-100, 21, 22, EOS, -100, -100], [-100] * 4 + [34, EOS],
              [-100, -100, 41, EOS, -100, -100]]  # fmt: skip
    write(talk / "talk-part-00-part-00000.gzip.parquet", turns, labels, "3 6 1 2\n")
    return root


def changes(original: Path, **data: Any) -> dict[str, Any]:
    store = {"_target_": "easyllm.data.sources.legacy_store.TokenStore"}
    sources = {
        "news": {**store, "path": str(original / "news_T")},
        "talk": {**store, "path": str(original / "talk_T")},
    }
    return {"data": {"sources": sources, "partitions": 1, "compression": "gzip", **data}}


def documents(place: StorePaths, stage: str, source: str) -> list[tuple[list[int], list[bool]]]:
    found = manifest.require(place, stage)["sources"][source]["files"]
    whole: Shard = join([shards.read(manifest.folder(place, stage) / f["path"]) for f in found])
    trained = np.ones(whole.tokens, bool) if whole.trained is None else whole.trained
    return [
        (whole.ids[a:b].tolist(), trained[a:b].tolist())
        for a, b in zip(whole.offsets, whole.offsets[1:], strict=False)
    ]


def spec_with_tokenizer(spec: Spec, tmp_path: Path, **over: Any) -> Any:
    """A run on a published tokenizer: one that was trained on the texts before."""
    if not (tmp_path / "texts/store").exists():
        work(spec(tmp_path / "texts"), "tokenize")
    run = spec(tmp_path, **over)
    from dataclasses import replace

    from easyllm.data.tokenizers.components import Pretrained

    sources = {k: v for k, v in run.data.sources.items() if k in ("news", "talk")}
    tokenizer = Pretrained(path=str(tmp_path / "texts/store/tokenizer"))
    return replace(run, data=replace(run.data, sources=sources, tokenizer=tokenizer))


def test_a_store_of_the_original_goes_all_the_way(
    original: Path, spec: Spec, tmp_path: Path
) -> None:
    run = spec_with_tokenizer(spec, tmp_path, **changes(original))
    work(run, "tokenize", "shuffle", "repartition")
    place = StorePaths(tmp_path / "store")
    news = [[5, 6, 7, EOS], [9, EOS, 8, 4, 3, 2], [11, EOS]]
    talk = [
        ([20, 21, 22, EOS], [False, True, True, True]),
        ([30, 31, 32, 33, 34, EOS], [False] * 4 + [True] * 2),
        ([40, EOS, 41, EOS], [False, False, True, True]),
    ]
    assert documents(place, "tokenize", "news") == [(row, [True] * len(row)) for row in news]
    assert documents(place, "tokenize", "talk") == talk
    assert sorted(documents(place, "repartition", "talk")) == talk
    names = [file.name for file in place.shuffled.rglob("*.parquet")]
    assert sorted(names) == [
        f"{n}_tokenizer-part-000-part-00000.gzip.parquet" for n in ("news", "talk")
    ]
    assert open_rows(run).manifest["sources"]["news"]["tokens"] == 12


def test_a_limit_counts_rows(original: Path, spec: Spec, tmp_path: Path) -> None:
    run = spec_with_tokenizer(spec, tmp_path, **changes(original, max_documents=2))
    (metrics,) = work(run, "tokenize")
    assert metrics["documents"] == 4


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("crc", r"has 3 rows of 2 columns, and .*says 5 of 2; make it again"),
        ("ids", r"holds the token 99999, and the tokenizer has 320; give data\.tokenizer\.path"),
        ("cut", r"is damaged: .*make it again, or remove it"),
        ("bpe", r"holds tokens, not texts"),
    ],
)
def test_what_is_wrong_with_a_store_is_said(
    original: Path, spec: Spec, tmp_path: Path, how: str, message: str
) -> None:
    file = next(original.glob("talk_T/*/*.parquet"))
    if how == "crc":
        next(original.glob("talk_T/*/.*.crc")).write_text("5 6 1 2")
    elif how == "ids":
        write(file, [[1, 99999]] * 3, [[1, 99999]] * 3, "3 2 1 2")
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-50])
    over = changes(original)
    run = spec(tmp_path, **over) if how == "bpe" else spec_with_tokenizer(spec, tmp_path, **over)
    if how == "bpe":
        from dataclasses import replace

        sources = {"talk": run.data.sources["talk"]}
        run = replace(run, data=replace(run.data, sources=sources))
    with pytest.raises(UserError, match=message):
        work(run, "tokenize")


def test_hadoops_checksums_are_skipped(original: Path, spec: Spec, tmp_path: Path) -> None:
    next(original.glob("talk_T/*/.*.crc")).write_bytes(b"crc\0\0\0\2\0\xff")
    (metrics,) = work(spec_with_tokenizer(spec, tmp_path, **changes(original)), "tokenize")
    assert metrics["documents"] == 6
