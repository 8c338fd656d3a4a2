"""What training reads, over the small store."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from easyllm import runfile
from easyllm.data.dataset.rows import Row, Rows, open_rows
from easyllm.data.store import manifest
from easyllm.data.store.token_cache import open_cache
from easyllm.errors import UserError
from easyllm.files import file_lock
from easyllm.paths import RunPaths
from easyllm.spec.run import RunSpec
from tests.data.conftest import Spec, work

EOS = 0


def epoch(rows: Rows, number: int = 0) -> list[Row]:
    first = number * rows.per_epoch
    return [rows.sample(i) for i in range(first, first + rows.per_epoch)]


def documents_of(run: RunSpec) -> dict[str, list[tuple[int, ...]]]:
    """All documents of the store by source, as tokens."""
    cache, _ = open_cache(run)
    return {
        name: [
            tuple(cache.tokens[cache.offsets[i] : cache.offsets[i + 1]].tolist())
            for i in range(first, end)
        ]
        for name, (first, end) in cache.sources.items()
    }


def cut(rows: list[Row], known: set[tuple[int, ...]]) -> Counter[tuple[int, ...]]:
    """The documents that lie end to end in rows, each as often as it occurs.

    Padding is an end-of-sequence token too, so it is left out by what follows from it:
    a piece is a known document or nothing at all.
    """
    found: Counter[tuple[int, ...]] = Counter()
    piece: tuple[int, ...] = ()
    for token in np.concatenate([row.input_ids for row in rows]).tolist():
        piece += (token,)
        if piece in known:
            found[piece] += 1
            piece = ()
        elif piece == (EOS,):
            piece = ()
    assert not piece
    return found


@pytest.mark.parametrize("packing", ["concat", "none", "best_fit"])
@pytest.mark.parametrize("number", [0, 3])
def test_an_epoch_holds_every_training_document_once(
    store: Path, spec: Spec, packing: str, number: int
) -> None:
    # pieces of a document that is longer than a row lie in any order when they are fitted
    data = {"packing": packing, "seq_len": 256 if packing == "best_fit" else 32}
    run = spec(store, data=data, training={"evaluate": {"fraction": 0.1}})
    rows = open_rows(run)
    every = [d for documents in documents_of(run).values() for d in documents]
    assert len(set(every)) == 100
    trained = cut(epoch(rows, number), set(every))
    held = cut(rows.heldout(), set(every))
    assert set(trained.values()) == set(held.values()) == {1}
    assert len(held) == rows.manifest["heldout_documents"] == 10
    assert trained + held == Counter(every)
    if packing == "concat":
        tokens = sum(map(len, trained))
        assert rows.per_epoch == -(-tokens // rows.seq_len)


@pytest.mark.parametrize("packing", ["concat", "none", "best_fit"])
def test_labels_are_the_tokens_that_are_trained(store: Path, spec: Spec, packing: str) -> None:
    run = spec(store, data={"packing": packing})
    rows = epoch(open_rows(run))
    for row in rows:
        assert {part.shape for part in row} == {(32,)}
        assert {part.dtype for part in row} == {np.dtype(np.int64)}
        assert np.all((row.labels == row.input_ids) | (row.labels == -100))
        assert row.positions[0] == 0
        assert np.all((np.diff(row.positions) == 1) | (row.positions[1:] == 0))
        assert np.all(row.labels[row.positions == 0] == -100)
    cache, _ = open_cache(run)
    assert cache.trained is not None
    trained, begun = cache.trained[:], cache.offsets[:-1]
    labels = np.concatenate([row.labels for row in rows])
    sources = manifest.require(RunPaths(run).store, "tokenize")["sources"].values()
    wanted = sum(s["trained_tokens"] for s in sources) - np.count_nonzero(trained[begun])
    # where rows cut documents, the first token after the cut is not predicted either
    lost = wanted - np.count_nonzero(labels != -100)
    cuts = sum(int(np.count_nonzero(row.positions == 0)) for row in rows) - len(begun)
    assert 0 < lost <= cuts


def test_positions_tell_where_documents_begin(store: Path, spec: Spec) -> None:
    run = spec(store, data={"packing": "best_fit", "seq_len": 256})
    known = {d for documents in documents_of(run).values() for d in documents}
    rows, found = epoch(open_rows(run)), []
    for row in rows:
        for piece in np.split(row.input_ids, np.flatnonzero(row.positions == 0)[1:]):
            found.append(max((d for d in known if d == tuple(piece[: len(d)].tolist())), key=len))
            assert np.all(piece[len(found[-1]) :] == EOS), "nothing but padding may follow"
    assert Counter(found) == Counter(known)
    assert len(rows) == -(-sum(map(len, known)) // 256)


def test_plans_are_made_once_and_mapped(store: Path, spec: Spec) -> None:
    run = spec(store, data={"packing": "best_fit", "seq_len": 48})
    rows = open_rows(run)
    rows.sample(rows.per_epoch)
    folder = open_cache(run)[0].folder / "plans" / rows.fingerprint
    made = {file: file.stat().st_ino for file in folder.rglob("*.npy")}
    assert {file.parent.name for file in made} == {"heldout", "epoch-1"}
    again = open_rows(run)
    assert np.array_equal(again.sample(rows.per_epoch), rows.sample(rows.per_epoch))
    assert {file: file.stat().st_ino for file in folder.rglob("*.npy")} == made
    assert not again.plan(1).slots.flags.writeable


def test_padding_stands_right_of_a_document_of_its_own(store: Path, spec: Spec) -> None:
    run = spec(store, data={"packing": "none", "seq_len": 16, "long_conversations": "cut"})
    known = {d for documents in documents_of(run).values() for d in documents}
    heads = {d[:16] for d in known}
    begun = 0
    for ids, labels, positions in epoch(open_rows(run)):
        assert positions.tolist() == list(range(16))
        row = tuple(ids.tolist())
        begun += any(row[: len(head)] == head for head in heads)
        real = 16 - int(np.argmax(ids[::-1] != EOS))
        assert np.all(labels[real + 1 :] == -100)
    assert begun == 100


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_any_row_can_be_read_at_any_time(store: Path, spec: Spec, packing: str) -> None:
    run = spec(store, data={"packing": packing})
    rows, again = open_rows(run), open_rows(run)
    count = rows.per_epoch * 2 + 5
    forward = [rows.sample(i) for i in range(count)]
    for i in np.random.default_rng(0).permutation(count).tolist():
        assert np.array_equal(again.sample(i), forward[i])
    first, second = (np.concatenate([row.input_ids for row in epoch(rows, e)]) for e in (0, 1))
    assert not np.array_equal(first, second)
    other = open_rows(spec(store, seed=8, data={"packing": packing}))
    assert not np.array_equal(other.sample(0)[0], forward[0][0])
    assert other.fingerprint != rows.fingerprint == again.fingerprint


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_weights_repeat_documents_and_leave_them_out(store: Path, spec: Spec, packing: str) -> None:
    weights = {"stories": {"weight": 2.0}, "dialogues": {"weight": 0.5}}
    data = {"sources": weights, "packing": packing, "seq_len": 256}
    run = spec(store, data=data)
    rows, documents = open_rows(run), documents_of(run)
    known = {d for group in documents.values() for d in group}
    index, dialogues = 0, []
    for number in range(4):
        samples = []
        while rows.epoch(index) == number:
            samples.append(rows.sample(index))
            index += 1
        found = cut(samples, known)
        assert all(found[story] == 2 for story in documents["stories"])
        chosen = [talk for talk in documents["dialogues"] if found[talk]]
        assert len(chosen) == 20 and all(found[talk] == 1 for talk in chosen)
        dialogues.append(set(chosen))
    assert dialogues[0] | dialogues[1] == dialogues[2] | dialogues[3] == set(documents["dialogues"])
    assert dialogues[0] != dialogues[2]
    assert abs(index / 4 - rows.per_epoch) <= 1


def test_what_is_held_out_moves_with_the_seed_only(store: Path, spec: Spec) -> None:
    evaluate = {"training": {"evaluate": {"fraction": 0.1}}}
    found = [
        open_rows(spec(store, stages=stages, **evaluate)).heldout()
        for stages in (["tokenize"], ["tokenize", "shuffle"], [])
    ]
    for other in found[1:]:
        assert all(np.array_equal(*pair) for pair in zip(found[0], other, strict=True))
    moved = open_rows(spec(store, seed=9, **evaluate)).heldout()
    assert not all(np.array_equal(*pair) for pair in zip(found[0], moved, strict=False))
    few = open_rows(spec(store, training={"evaluate": {"fraction": 1e-6, "max_rows": 1}}))
    assert few.manifest["heldout_documents"] == 2 and len(few.heldout()) == 1
    assert open_rows(spec(store)).heldout() == []


def test_documents_that_are_alike_stay_on_one_side(spec: Spec, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(["same words"] * 50 + ["others", "third"]))
    source = {"stories": {"path": str(tmp_path / "a.txt")}}
    run = spec(
        tmp_path,
        stages=["tokenize"],
        data={"sources": source},
        training={"evaluate": {"fraction": 0.01}},
    )
    work(run, "tokenize")
    stories = open_rows(run).manifest["sources"]["stories"]
    assert stories["heldout_documents"] in (1, 50)
    (tmp_path / "a.txt").write_text("\n\n".join(["same words"] * 50))
    (tmp_path / "b.tsv").write_text("q\ta\n" * 5)
    alone = {
        "stories": {"path": str(tmp_path / "a.txt")},
        "dialogues": {"path": str(tmp_path / "b.tsv")},
    }
    run = spec(
        tmp_path / "alone",
        stages=["tokenize"],
        data={"sources": alone},
        training={"evaluate": {"fraction": 0.5}},
    )
    work(run, "tokenize")
    with pytest.raises(UserError, match=r"evaluate\.fraction=0\.5 holds nothing out"):
        open_rows(run)


def test_a_node_builds_its_map_once(spec: Spec, tmp_path: Path) -> None:
    run = spec(tmp_path, data={"cache": str(tmp_path / "node")})
    work(run, "tokenize", "shuffle", "repartition")
    runfile.save(run, tmp_path / "run.yaml")
    script = (
        "import sys; from pathlib import Path; from easyllm import runfile\n"
        "from easyllm.data.dataset.rows import open_rows\n"
        "run = runfile.load(Path(sys.argv[1])); rows = open_rows(run)\n"
        "index, = Path(run.data.cache).glob('*/index.json')\n"
        "print(index.stat().st_ino, rows.fingerprint, rows.sample(5)[0].sum(), rows.cache)\n"
        "print(*sorted(m.partition('.')[0] for m in sys.modules if m in "
        "('torch', 'transformers', 'tokenizers')))\n"
    )
    (fingerprint,) = {open_cache(spec(tmp_path))[0].fingerprint}
    with file_lock(tmp_path / "node" / f"{fingerprint}.lock"):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(tmp_path / "run.yaml")],
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]
        with pytest.raises(subprocess.TimeoutExpired):
            processes[0].wait(3)  # all come to the lock before one may build
    printed = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(printed) == 1
    rows = open_rows(run)
    lines = printed.pop().splitlines()
    assert str(rows.cache) in lines[0] and rows.fingerprint in lines[0]
    assert lines[1:] in ([], [""])
    assert rows.cache["bytes"] >= 4 * rows.manifest["tokens"]


def test_a_store_that_does_not_fit_the_run_is_refused(spec: Spec, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add tokenize to stages"):
        open_rows(spec(tmp_path, stages=[]))
    work(spec(tmp_path), "tokenize", "shuffle", "repartition")
    shutil.rmtree(tmp_path / "store/tokens")
    work(spec(tmp_path, data={"max_documents": 20}), "tokenize")
    with pytest.raises(UserError, match=r"other tokens.*add shuffle and repartition"):
        open_rows(spec(tmp_path))
    more = {"more": {"_target_": "easyllm.data.sources.readers.PythonDocs"}}
    with pytest.raises(UserError, match=r"holds the sources dialogues, stories, but .*more"):
        open_rows(spec(tmp_path, stages=["tokenize"], data={"sources": more}))
