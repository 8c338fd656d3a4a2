"""Tokenize, shuffle and repartition over a small store."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from easyllm.data.store import manifest, shards
from easyllm.data.store.shards import Shard, join
from easyllm.data.tokenizers.encode import load_tokenizer
from easyllm.errors import UserError
from easyllm.files import read_record
from easyllm.paths import StorePaths
from easyllm.stages import load
from tests.data.conftest import Spec, dialogue, story, work

TOKENS = "tokens/dialogues_bpe320/dialogues-part-00/dialogues-part-00-part-00000.zstd.parquet"


def documents(store: Path, stage: str, source: str) -> Shard:
    """A source's documents as a stage left them, in order."""
    place = StorePaths(store)
    found = manifest.require(place, stage)["sources"][source]["files"]
    return join([shards.read(manifest.folder(place, stage) / file["path"]) for file in found])


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*.parquet"))
    }


def test_the_trees_are_named_as_the_originals(store: Path) -> None:
    root = store / "store"
    assert (root / TOKENS).is_file()
    assert sorted(content(root / "shuffled")) == [
        f"{name}_bpe320-part-000/{name}_bpe320-part-000-part-0000{k}.zstd.parquet"
        for name in ("dialogues", "stories")
        for k in range(3)
    ]
    info = (root / "partitions/data.info").read_text().splitlines()
    assert info[0] == "Data: dialogues_bpe320 stories_bpe320"
    assert info[1:4] == ["Partitions: 3", "Files: 6", "Samples: 100"]
    uuid = info[4].removeprefix("UUID: ")
    names = [f"{name}_bpe320-part-000-part" for name in ("dialogues", "stories")]
    expected = [f"{uuid}-part-0000{k}/{n}-0000{k}.zstd.parquet" for k in range(3) for n in names]
    assert sorted(content(root / "partitions")) == expected
    assert [line.split("\t")[0] for line in info[6:]] == expected
    assert not list(root.rglob("*.part"))


def test_documents_decode_to_their_sources(store: Path) -> None:
    tokenizer = load_tokenizer(store / "store/tokenizer")
    stories = documents(store / "store", "tokenize", "stories")
    assert stories.trained is None
    texts = [
        tokenizer.decode(stories.ids[a:b])
        for a, b in zip(stories.offsets, stories.offsets[1:], strict=False)
    ]
    assert texts == [story(i) + "<|endoftext|>" for i in range(60)]
    talk = documents(store / "store", "tokenize", "dialogues")
    assert talk.trained is not None
    for i in range(40):
        span = slice(talk.offsets[i], talk.offsets[i + 1])
        answers = "".join(f"{turn}<|endoftext|>" for turn in dialogue(i).split("\t")[1::2])
        assert tokenizer.decode(talk.ids[span][talk.trained[span]]) == answers


def test_the_number_of_workers_changes_nothing(spec: Spec, tmp_path: Path) -> None:
    made = []
    for workers in (1, 2):
        run = spec(tmp_path / str(workers), data={"workers": workers, "rows_per_file": 9})
        (metrics,) = work(run, "tokenize")
        assert metrics["documents"] == 100
        made.append(content(tmp_path / str(workers) / "store/tokens"))
        found = read_record(tmp_path / str(workers) / "store/tokens/manifest.json")
        made.append({key: value for key, value in found.items() if key != "metrics"})
    assert len(made[0]) == 7 + 5
    assert made[0] == made[2]
    assert made[1] == made[3]


def test_shuffling_moves_rows_and_changes_none(store: Path, spec: Spec, tmp_path: Path) -> None:
    for source, count in (("stories", 60), ("dialogues", 40)):
        before = shards.hashes(documents(store / "store", "tokenize", source))
        after = shards.hashes(documents(store / "store", "shuffle", source))
        dealt = shards.hashes(documents(store / "store", "repartition", source))
        assert len(set(before.tolist())) == count
        assert sorted(before) == sorted(after) == sorted(dealt)
        assert (before != after).mean() > 0.8
    again = spec(tmp_path / "again")
    work(again, "tokenize", "shuffle")
    assert content(tmp_path / "again/store/shuffled") == content(store / "store/shuffled")
    other = spec(tmp_path / "other", seed=8)
    work(other, "tokenize", "shuffle")
    assert content(tmp_path / "other/store/tokens") == content(store / "store/tokens")
    assert content(tmp_path / "other/store/shuffled") != content(store / "store/shuffled")


def test_partitions_are_links(store: Path) -> None:
    root = store / "store"
    shuffled = {file.name: file.stat().st_ino for file in (root / "shuffled").rglob("*.parquet")}
    dealt = {file.name: file.stat().st_ino for file in (root / "partitions").rglob("*.parquet")}
    assert shuffled == dealt


def test_partitions_are_copies_where_links_fail(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    run = spec(tmp_path)
    work(run, "tokenize", "shuffle")
    monkeypatch.setattr(os, "link", refuse)
    (metrics,) = work(run, "repartition")
    assert metrics["linked"] == 0
    by_name = [
        {Path(name).name: bytes_ for name, bytes_ in content(tmp_path / "store" / stage).items()}
        for stage in ("shuffled", "partitions")
    ]
    assert by_name[0] == by_name[1]


def test_work_that_is_done_is_not_done_again(spec: Spec, tmp_path: Path) -> None:
    stages = ("tokenize", "shuffle", "repartition")
    first = work(spec(tmp_path), *stages)
    assert [metrics["reused"] for metrics in first] == [False] * 3
    heavier = spec(tmp_path, data={"sources": {"stories": {"weight": 2.0}}})
    assert [metrics["reused"] for metrics in work(heavier, *stages)] == [True] * 3
    outputs = load("tokenize").outputs(spec(tmp_path))
    assert tmp_path / "store" / TOKENS in outputs and outputs[-1].name == "manifest.json"


def test_a_store_is_never_overwritten(spec: Spec, tmp_path: Path) -> None:
    stages = ("tokenize", "shuffle", "repartition")
    work(spec(tmp_path), *stages)
    before = {stage: (tmp_path / "store" / stage / "manifest.json").read_bytes()
              for stage in ("tokens", "shuffled", "partitions")}  # fmt: skip
    with pytest.raises(
        UserError,
        match=r"(?s)tokens/ was made from other data.*documents: null in the store, 30 .*remove",
    ):
        work(spec(tmp_path, data={"max_documents": 30}), "tokenize")
    with pytest.raises(UserError, match=r"(?s)shuffled/ was made .*seed: 7 in the store, 8 in"):
        work(spec(tmp_path, seed=8), "shuffle")
    for stage, content in before.items():
        assert (tmp_path / "store" / stage / "manifest.json").read_bytes() == content
    shutil.rmtree(tmp_path / "store")
    again = work(spec(tmp_path, data={"max_documents": 30}), *stages)
    assert [metrics["documents"] for metrics in again] == [60] * 3


def test_another_tokenizer_or_template_is_refused(spec: Spec, tmp_path: Path) -> None:
    work(spec(tmp_path), "tokenize", "shuffle")
    base = {"stages": ["shuffle"]}
    load("shuffle").require(spec(tmp_path, **base))
    data: dict[str, Any] = {"tokenizer": {"vocab_size": 400}}
    for stage in ("shuffle", "repartition", "train"):
        with pytest.raises(UserError, match=r"(?s)tokenizer: bpe320 in the store, bpe400 in this"):
            load(stage).require(spec(tmp_path, data=data, stages=[stage], training={"steps": 1}))
    data = {"template": {"_target_": "easyllm.data.chat.templates.Plain"}}
    with pytest.raises(UserError, match=r"(?s)template\._target_: .*TokenizerTemplate.*Plain"):
        load("shuffle").require(spec(tmp_path, data=data, **base))


def test_runs_that_share_a_store_build_it_once(spec: Spec, tmp_path: Path) -> None:
    run, found = spec(tmp_path), []
    threads = [
        threading.Thread(target=lambda: found.extend(work(run, "tokenize"))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(metrics["reused"] for metrics in found) == [False, True, True]


@pytest.mark.parametrize("how", ["cut", "garbled", "exchanged", "removed"])
def test_a_damaged_file_is_named_and_can_be_made_anew(spec: Spec, tmp_path: Path, how: str) -> None:
    run = spec(tmp_path)
    work(run, "tokenize")
    file = tmp_path / "store" / TOKENS
    whole = bytearray(file.read_bytes())
    if how == "cut":
        file.write_bytes(whole[:-100])
    elif how == "garbled":
        file.write_bytes(whole[:200] + bytes(50) + whole[250:])
    elif how == "exchanged":
        there = shards.read(file)
        assert there.trained is not None
        shards.write(file, Shard(there.ids, there.offsets, ~there.trained), "zstd")
    else:
        file.unlink()
    with pytest.raises(UserError, match=rf"{file.name} is damaged .*remove it.*tokenize"):
        work(run, "shuffle")
    if how != "cut":  # what has another size is noticed anyway
        file.unlink(missing_ok=True)
    work(run, "tokenize", "shuffle")
    assert file.read_bytes() == whole


def test_an_absent_stage_is_asked_for(spec: Spec, tmp_path: Path) -> None:
    run = spec(tmp_path)
    with pytest.raises(UserError, match="add tokenize to stages"):
        work(run, "shuffle")
    with pytest.raises(UserError, match="add shuffle to stages"):
        work(run, "repartition")
    work(run, "tokenize", "shuffle")
    with pytest.raises(UserError, match=r"data\.partitions=2; add shuffle to stages"):
        work(spec(tmp_path, data={"partitions": 2}), "repartition")
    shutil.rmtree(tmp_path / "store/shuffled")
    with pytest.raises(UserError, match=r"partitions=50.*dialogues has 40.*partitions=40 at most"):
        work(spec(tmp_path, data={"partitions": 50}), "shuffle")


def test_a_failed_stage_leaves_nothing_half_made(spec: Spec, tmp_path: Path) -> None:
    (tmp_path / "bad.tsv").write_text("q\ta\nq\n")
    source = {"path": str(tmp_path / "bad.tsv")}
    with pytest.raises(UserError, match=r"max_bad_records=0 .*\n.*bad\.tsv, line 2"):
        work(
            spec(tmp_path, data={"sources": {"dialogues": source}, "max_bad_records": 0}),
            "tokenize",
        )
    (tmp_path / "bad.tsv").write_text("\n\n")
    with pytest.raises(UserError, match=r"data\.sources\.dialogues holds no document"):
        work(spec(tmp_path, data={"sources": {"dialogues": source}}), "tokenize")
    (tmp_path / "bad.tsv").unlink()
    with pytest.raises(UserError, match=r"data\.sources\.dialogues: no such file"):
        work(spec(tmp_path, data={"sources": {"dialogues": source}}), "tokenize")
    assert not (tmp_path / "store/tokens").exists()
    left = {path.name for path in (tmp_path / "store").glob(".*")}
    assert left <= {".tokens.work", ".tokens.pieces"}


@pytest.mark.parametrize(
    ("compression", "suffix"), [("gzip", ".gzip.parquet"), ("none", "-00000.parquet")]
)
def test_codecs(spec: Spec, tmp_path: Path, compression: str, suffix: str) -> None:
    work(spec(tmp_path, data={"compression": compression}), "tokenize")
    names = list(content(tmp_path / "store/tokens"))
    assert len(names) == 2 and all(name.endswith(suffix) for name in names)
