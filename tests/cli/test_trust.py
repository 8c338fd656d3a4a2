"""A spec file names the code that it imports: from elsewhere that needs consent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

CODE = (
    "import pathlib\n"
    "from dataclasses import dataclass\n"
    "from easyllm.data.sources.readers import Text\n"
    "pathlib.Path(__file__).with_name('imported').touch()\n"
    "@dataclass(frozen=True, kw_only=True)\n"
    "class Own(Text): pass\n"
)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder from somewhere else, with a spec and the code that it names."""
    folder = tmp_path / "elsewhere"
    (folder / "code").mkdir(parents=True)
    (folder / "code/foreign_code.py").write_text(CODE)
    (folder / "notes.txt").write_text("A note.\n\nAnother.\n")
    spec(folder, folder / "code")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def spec(folder: Path, *path: Path | str, **over: Any) -> Path:
    file = folder / "run.yaml"
    tree = {
        "name": "foreign",
        "stages": ["tokenize"],
        "components": {"allow": ["foreign_code"], "path": list(map(str, path))},
        "data": {
            "sources": {
                "notes": {"_target_": "foreign_code.Own", "path": str(folder / "notes.txt")}
            },
            "tokenizer": {"_target_": "ByteLevelBPE", "vocab_size": 260},
        },
        "hardware": {"device": "cpu"},
        **over,
    }
    file.write_text(yaml.safe_dump(tree))
    return file


def easyllm(*words: Path | str) -> tuple[int, str]:
    """Status and messages of the command in the current folder, in a process of its own."""
    command = [sys.executable, "-m", "easyllm", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr
    return done.returncode, " ".join(done.stderr.split())


def imported(folder: Path) -> bool:
    return (folder / "code/imported").exists()


def test_code_from_elsewhere_is_refused_before_it_is_imported(elsewhere: Path, here: Path) -> None:
    file = elsewhere / "run.yaml"
    for words in ([], ["stages=[]"], ["seed=7"]):
        status, told = easyllm(file, *words)
        assert status == 2 and not imported(elsewhere)
        assert f"components.path = {elsewhere / 'code'} ({file})" in told
        assert "is neither in the current folder nor in --config-dir" in told
        assert "look at the code there, then give --trust" in told
        assert "foreign_code.Own would be imported from there" in told
    assert not list(here.iterdir())


def test_with_trust_it_is_imported_and_said_from_where(elsewhere: Path, here: Path) -> None:
    """By the stages' own processes too, which are not asked again."""
    status, told = easyllm(elsewhere / "run.yaml", "--trust")
    assert status == 0 and imported(elsewhere)
    line = f"easyllm | --trust: foreign_code.Own imported from {elsewhere / 'code'}"
    assert told.count(line) == 1
    (run,) = here.glob("runs/foreign-*/run.yaml")
    status, told = easyllm(run, "stages=[]")
    assert status == 2 and "give --trust" in told, "it is no less foreign for having been run"
    status, told = easyllm("-m", elsewhere / "run.yaml", "--trust", "stages=[]", "seed=1,2")
    assert status == 0 and told.count(line) == 2


@pytest.mark.parametrize(
    "how", ["current folder", "--config-dir", "command line", "one of the list"]
)
def test_code_of_the_users_own_needs_none(
    elsewhere: Path, here: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    file, code = elsewhere / "run.yaml", elsewhere / "code"
    words: list[str] = []
    if how == "current folder":
        monkeypatch.chdir(elsewhere)
        spec(elsewhere, "code")
    elif how == "--config-dir":
        words = ["--config-dir", str(elsewhere)]
    elif how == "command line":
        words = [f"components.path=[{code}]"]
    else:
        words = [f"components.path.0={code}"]
    status, told = easyllm(file, *words, "stages=[]")
    assert status == 0 and imported(elsewhere)
    assert "--trust" not in told


def test_a_folder_is_what_a_link_leads_to(
    elsewhere: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "code").symlink_to(elsewhere / "code")
    file = spec(here, "code")
    status, told = easyllm(file, "stages=[]")
    assert status == 2 and not imported(elsewhere)
    assert f"components.path = code ({file}) leads to {elsewhere / 'code'}, which is" in told
    monkeypatch.setenv("HOME", str(elsewhere))
    for path in ("../elsewhere/code", "~/code"):
        file = spec(here, path)
        status, told = easyllm(file, "stages=[]")
        assert status == 2 and "give --trust" in told and not imported(elsewhere)


def test_each_foreign_folder_is_named(elsewhere: Path, here: Path) -> None:
    """Whatever the command line puts in its place: the file's own are read too, to tell whether
    the words make another run of it."""
    file = spec(elsewhere, elsewhere / "code", elsewhere / "more", here)
    status, told = easyllm(file, "stages=[]")
    assert status == 2 and "the spec has 2 problems" in told and str(elsewhere / "more") in told
    status, told = easyllm(file, f"components.path=[{here}]")
    assert status == 2 and "give --trust" in told and not imported(elsewhere)


def test_a_folder_that_a_variable_names(
    elsewhere: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODE", str(elsewhere / "code"))
    status, told = easyllm(spec(here, "${oc.env:CODE}"), "stages=[]")
    assert status == 2 and "give --trust" in told and not imported(elsewhere)


def test_a_spec_without_folders_needs_none(elsewhere: Path, here: Path) -> None:
    tree = yaml.safe_load((elsewhere / "run.yaml").read_text())
    del tree["components"]
    tree["data"]["sources"]["notes"]["_target_"] = "easyllm.data.sources.readers.Text"
    (elsewhere / "run.yaml").write_text(yaml.safe_dump(tree))
    status, told = easyllm(elsewhere / "run.yaml", "stages=[]")
    assert status == 0 and "--trust" not in told


def test_a_command_that_goes_on_says_that_it_needs_trust(elsewhere: Path, here: Path) -> None:
    status, _ = easyllm(elsewhere / "run.yaml", "--trust", "run_dir=run")
    command = [sys.executable, "-m", "easyllm", "run/run.yaml", "--trust"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert status == 0 and done.returncode == 0
    assert "run/run.yaml --trust seed=1" in done.stdout
