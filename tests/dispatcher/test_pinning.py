"""A run keeps the commit of the hub's model with which it began."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from easyllm.__main__ import main
from easyllm.paths import RunPaths
from easyllm.spec.run import RunSpec
from tests.hub import NAME, Hub, unreachable
from tests.inference.small import save_model

OLD, NEW, OTHER = "a" * 40, "b" * 40, "c" * 40
WORDS = ["data=text", "data.sources.text.path=notes.txt", "data.seq_len=64", "hardware=cpu",
         f"model.path={NAME}", "training.steps=2"]  # fmt: skip
TOKENIZE, TRAIN = [*WORDS, "stages=[tokenize]"], [*WORDS, "stages=[train]"]


@pytest.fixture(scope="module")
def commits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of the same model but for a note, and of one with another tokenizer."""
    folder = tmp_path_factory.mktemp("hub")
    old = save_model(folder / "old")
    new = shutil.copytree(old, folder / "new")
    (new / "notes.txt").write_text("another text, the same model")
    return {OLD: old, NEW: new, OTHER: save_model(folder / "other", chat=True)}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commits: dict[str, Path]) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("A note.\n\nAnother.\n")
    with Hub(commits, OLD, tmp_path / "cache").running(monkeypatch) as hub:
        hub.tags["v1"] = OLD
        yield hub


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """The runs that would have been started, of which nothing is."""
    runs: list[RunSpec] = []

    def instead(run: RunSpec, file: Path) -> int:
        runs.append(run)
        return 0

    monkeypatch.setattr("easyllm.dispatcher.run.run_on_machines", instead)
    monkeypatch.setattr("easyllm.stages.train.Train.require", lambda self, run: None)
    return runs


def revision(run: Path) -> Any:
    return yaml.safe_load((run / "run.yaml").read_text())["model"]["revision"]


def test_the_commit_is_kept_when_main_moves(hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    """By the same command and by its run.yaml; another run takes the newest, and the tokens that
    are the same by its tokenizer."""
    assert main(TOKENIZE) == 0
    (run,) = Path("runs").glob("run-*")
    assert revision(run) == OLD
    record = json.loads((run / "stages/tokenize.json").read_text())
    assert record["spec"]["model.revision"] == OLD
    hub.main = NEW
    hub.requests.clear()
    for words in (TOKENIZE, [str(run / "run.yaml")]):
        capfd.readouterr()
        assert main(words) == 0
        assert "up to date; skipped" in capfd.readouterr().err
    assert (revision(run), hub.requests) == (OLD, []), "it has what it needs"

    assert main([str(run / "run.yaml"), "seed=7", "data.dir=store"]) == 0
    (other,) = (r for r in Path("runs").glob("run-*") if r != run)
    assert revision(other) == OLD, "a run.yaml says which model it is"
    assert main([*TOKENIZE, "training.optimizer.lr=1e-5"]) == 0
    (newest,) = (r for r in Path("runs").glob("run-*") if r not in (run, other))
    assert revision(newest) == NEW
    metrics = json.loads((newest / "stages/tokenize.json").read_text())["metrics"]
    assert metrics["reused"]


def test_another_tokenizer_is_not_taken_for_that_of_a_store(
    hub: Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*TOKENIZE, "run_dir=a", "data.dir=store"]) == 0
    hub.main = OTHER
    assert main([*TOKENIZE, "run_dir=b", "data.dir=store"]) == 1
    assert "tokenizer.content" in capfd.readouterr().err
    assert main([*TRAIN, "run_dir=c", "data.dir=store"]) == 2
    told = " ".join(capfd.readouterr().err.split())
    assert f"another content in the store than at model.revision={OTHER}" in told
    assert (
        main([*TRAIN, "run_dir=c", "data.dir=store", "stages=[tokenize]", "model.revision=v1"]) == 0
    )


def test_what_is_given_is_taken_as_it_is(
    hub: Hub, started: list[RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And names another run and store than none; what was fetched is not asked for again."""
    hub.main = NEW
    places = set()
    for given, kept in ((None, NEW), ("v1", "v1"), (OLD, OLD), ("main", "main")):
        words = [] if given is None else [f"model.revision={given}"]
        assert main([*TOKENIZE, *words]) == 0
        places.add((started[-1].run_dir, started[-1].data.dir))
        assert started[-1].model.revision == kept
        assert revision(RunPaths(started[-1]).root) == kept
    assert len({run for run, _ in places}) == len({store for _, store in places}) == 4
    unreachable(monkeypatch)
    assert main([*TOKENIZE, "model.revision=v1"]) == 0
    assert main([*TOKENIZE, "model.revision=v1", "run_dir=elsewhere"]) == 0


def test_the_cache_says_the_commit_where_the_hub_does_not(
    hub: Hub, started: list[RunSpec], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    unreachable(monkeypatch)
    assert main(TRAIN) == 2 and not started
    told = " ".join(capsys.readouterr().err.split())
    assert f"model.path = {NAME} (command line)" in told and "the hub does not answer" in told
    assert not Path("runs").exists(), "nothing is written"
    home = Path("cache/models--some--model")
    shutil.copytree(hub.commits[NEW], home / "snapshots" / NEW)
    (home / "refs").mkdir()
    (home / "refs/main").write_text(NEW)
    assert main(TRAIN) == 0
    assert revision(RunPaths(started[-1]).root) == NEW


@pytest.mark.parametrize("given", ["v2", "d" * 40])
def test_a_revision_that_is_not_there_is_refused(
    hub: Hub, started: list[RunSpec], capsys: pytest.CaptureFixture[str], given: str
) -> None:
    assert main([*TRAIN, f"model.revision={given}"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"model.revision = {given} (command line)" in told
    assert "some/model has no such branch, tag or commit" in told and "or leave it out" in told
    assert not started and not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model.path=own"], "applies to a model on the hub, but model.path=own is a folder"),
        (["model.path=null", "model=tiny"], "but model.path is not given"),
    ],
)
def test_a_revision_of_what_has_none(
    hub: Hub, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    shutil.copytree(hub.commits[OLD], "own")
    assert main([*TRAIN, *words, "model.revision=v1"]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_another_model_has_no_part_in_the_revision(hub: Hub, started: list[RunSpec]) -> None:
    assert main(TRAIN) == 0
    file = str(RunPaths(started[-1]).spec)
    shutil.copytree(hub.commits[OLD], "own")
    assert main([file, "model.path=own"]) == 0
    assert started[-1].model.revision is None
    assert started[-1].run_dir != started[0].run_dir
    assert main([file, "training.steps=3"]) == 0
    assert started[-1].model.revision == OLD
    assert main([*TRAIN, "training.steps=3"]) == 0
    assert started[-1].run_dir == started[-2].run_dir, "the same run by other words"


def test_nobody_is_asked_for_a_model_that_is_not_needed(hub: Hub, started: list[RunSpec]) -> None:
    """The stages that go before it are passed over when it is pinned later."""
    own = ["data.tokenizer=ByteLevelBPE", "data.tokenizer.vocab_size=260", "run_dir=run"]
    assert main([*TOKENIZE, *own]) == 0
    assert started[-1].model.revision is None and not hub.requests
    assert main([*TRAIN, *own]) == 0
    assert started[-1].model.revision == OLD


def test_a_run_without_its_run_yaml_keeps_its_commit(hub: Hub) -> None:
    assert main(TOKENIZE) == 0
    (run,) = Path("runs").glob("run-*")
    (run / "run.yaml").unlink()
    hub.main = NEW
    assert main(TOKENIZE) == 0
    assert revision(run) == OLD


def test_a_run_that_is_older_than_revisions_goes_on(
    hub: Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither its run.yaml nor its records know the key."""
    assert main(TOKENIZE) == 0
    (run,) = Path("runs").glob("run-*")
    plain = yaml.safe_load((run / "run.yaml").read_text())
    del plain["model"]["revision"]
    (run / "run.yaml").write_text(yaml.safe_dump(plain))
    file = run / "stages/tokenize.json"
    record = json.loads(file.read_text())
    del record["spec"]["model.revision"], record["digest"]  # as before there were digests
    file.write_text(json.dumps(record))
    hub.main = OTHER
    capfd.readouterr()
    assert main(TOKENIZE) == 0
    assert "up to date; skipped" in capfd.readouterr().err
    assert revision(run) is None
    (store,) = Path("runs/stores").glob("*/tokens/manifest.json")
    manifest = json.loads(store.read_text())
    for made in (manifest["made_from"], manifest["encoding"]):
        del made["tokenizer"]["content"]
    del manifest["digest"]
    store.write_text(json.dumps(manifest))
    assert main(TOKENIZE) == 0
    assert json.loads(file.read_text())["metrics"]["reused"]
    assert main([*TOKENIZE, "model.revision=v1", f"run_dir={run}"]) == 2
    assert "differs in model.revision (None -> v1)" in " ".join(capfd.readouterr().err.split())
