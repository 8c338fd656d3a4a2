"""What the check finds of files, folders, ports and keys, before a stage would be started."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from easyllm.__main__ import main
from easyllm.cli.library import Library, shipped_folder
from easyllm.progress import ON_TERMINAL, progress
from tests.support import LLAMA

SERVED = "stages=[tokenize,shuffle,repartition,train,export,serve]"


def refused(words: list[str], capsys: Any) -> str:
    assert main(words) == 2
    return " ".join(capsys.readouterr().err.split())


def test_a_port_in_use(empty: Path, capsys: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused(["+recipe=demo", SERVED, f"serving.port={port}"], capsys)
    assert f"serving.port = {port} (command line) is in use on 127.0.0.1 give another one" in said
    said = refused(["+recipe=demo", SERVED, "serving.host=192.0.2.1"], capsys)
    assert "serving.host = 192.0.2.1 (command line) cannot be served at" in said
    assert not list(empty.iterdir())


def test_wandb_without_a_key(empty: Path, capsys: Any, monkeypatch: Any) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_CONFIG_DIR", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(empty))
    monkeypatch.setattr("easyllm.dispatcher.run.run_on_machines", lambda run, file: 0)
    words = ["+recipe=demo", "+tracker=wandb", "stages=[tokenize,shuffle,repartition,train]"]
    said = refused(words, capsys)
    assert "training.trackers.wandb.mode = online there is no key for https://api.wandb.ai" in said
    assert "set WANDB_API_KEY, or give training.trackers.wandb.mode=offline" in said
    assert main([*words, "training.trackers.wandb.mode=offline"]) == 0
    (empty / ".netrc").write_text("machine example.org login user password x\n")
    refused(words, capsys)
    (empty / ".netrc").write_text("machine api.wandb.ai login user password x\n")
    assert main(words) == 0


def test_a_folder_that_cannot_be_written_to(empty: Path, capsys: Any, monkeypatch: Any) -> None:
    """One that a key names, and the current one, below which a run lands by default."""
    said = refused(["+recipe=demo", "run_dir=/proc/nope/run"], capsys)
    assert "run_dir = /proc/nope/run (command line) /proc cannot be written to" in said
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != empty)  # root may, always
    said = refused(["+recipe=demo"], capsys)
    assert f"run_dir = {empty}/runs {empty} cannot be written to give run_dir=<another" in said
    assert "data.dir" not in said, "one folder, one problem"
    assert not list(empty.iterdir())


FILES = {
    "5\n": "holds no map of keys",
    "- a\n": "holds a list, but a spec is a map of keys",
    "x: " + "[" * 500 + "]" * 500: "holds maps or lists within each other without end",
    b"name: \xff\n": "is not UTF-8 text from byte 6 on save it as UTF-8",
    "name: ${nope}\n": "name = ${nope} (run.yaml) no key nope is given",
    'name: "${"\n': "has a value that cannot be read between ${ and } give ${<key>}",
    '"": ${nope}\n': "'' = ${nope} (run.yaml) no key nope is given",
    'data: {" ": {"": 5}}\n': "data.' ' = {\"\": 5} (run.yaml) no such key",
    'parallelism: {deepspeed: {"": "${c:d}"}}\n': "parallelism.deepspeed.'' = ${c:d} (run.yaml)",
    "a: [1\n": "is not YAML in line 2",
    "name: 1_0\n": "name = 1_0 (run.yaml) must be text quote it: '1_0'",
    "seed: -1\n": "seed = -1 (run.yaml) must be at least 0",
}


@pytest.mark.parametrize("text", FILES, ids=[str(text[:20]) for text in FILES])
def test_a_run_file_that_is_none(text: str | bytes, empty: Path, capsys: Any) -> None:
    Path("run.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert FILES[text] in refused(["run.yaml", "stages=[]"], capsys)


def test_words_over_a_run_file(empty: Path, capsys: Any) -> None:
    Path("run.yaml").write_text("name: mine\nseed: 3\nhardware: {device: cpu}\n")
    assert main(["run.yaml", "~seed", "stages=[]"]) == 0, "~ takes out, and sets no null"
    said = refused(["run.yaml", "~sed", "stages=[]"], capsys)
    assert "~sed (command line) removes a key that no file gives did you mean ~seed?" in said
    said = refused(["--cfg", "job", "run.yaml"], capsys)
    assert "is for recipes and groups" in said


def test_a_sweep_over_a_run_file(empty: Path, capfd: Any) -> None:
    """It was the default spec that was swept once, and the file was passed over."""
    Path("run.yaml").write_text("name: mine\nhardware: {device: cpu}\n")
    assert main(["-m", "run.yaml", "seed=1,2", "stages=[]"]) == 0
    said = capfd.readouterr()
    assert said.out.count("mine: the spec is valid") == 2
    assert "sweep: 2 of 2 points done" in said.err


CONFIGS = {
    "{" * 3000: "its config.json cannot be read",
    "[1]": "its config.json does not hold a map of keys",
    json.dumps({**LLAMA, "head_dim": -1}): "its config.json gives head_dim -1, which must be",
    json.dumps({**LLAMA, "hidden_size": "32"}): "gives hidden_size '32', which must be a whole",
    json.dumps({**LLAMA, "num_hidden_layers": 10**9}): "must be a whole number from 1 to 1000",
}


@pytest.mark.parametrize("text", CONFIGS, ids=[text[-30:] for text in CONFIGS])
def test_a_models_configuration_that_is_none(text: str, empty: Path, capsys: Any) -> None:
    Path("own").mkdir()
    Path("own/config.json").write_text(text)
    for more in ([], ["+smoke=cpu"]):
        assert CONFIGS[text] in refused(["model.path=own", "stages=[]", *more], capsys)


def test_pages_fit_a_terminal(empty: Path, capsys: Any) -> None:
    for words in ([], ["--help"]):
        assert main(words) == 0
        page = capsys.readouterr().out
        assert max(map(len, page.splitlines())) <= 80
        for option in Library(shipped_folder()).options("model" if words else "recipe"):
            assert option in page, "no word is broken"


@pytest.mark.parametrize("terminal, width", [(None, 80), ("120", 120), ("60", 60)])
def test_bars_fit_behind_pipes(
    terminal: str | None, width: int, capsys: Any, monkeypatch: Any
) -> None:
    """The width is 80, or that of the terminal at the other end of the pipe."""
    monkeypatch.delenv(ON_TERMINAL, raising=False)
    if terminal:
        monkeypatch.setenv(ON_TERMINAL, terminal)
    assert not sys.stderr.isatty()
    with progress("a label that is longer than any that a stage has", 10**9, "B") as bar:
        bar.delay = bar.mininterval = 0
        bar.update(10**6)
        bar.refresh()
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert lines and max(map(len, lines)) < width
    assert any("label" in line for line in lines)
