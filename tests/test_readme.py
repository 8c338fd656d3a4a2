"""Every `shell` command of the README and of docs/ is run, and what the README shows is what comes.

What needs no run is checked in test_docs.py.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.pages import BLOCKS, SHELL, TABLE, write_files
from tests.support import needs_java

AFTERWARDS = [
    line for block in BLOCKS if block.page.name == "README.md" and block.kind == ""
    for line in block.text.splitlines() if line.startswith("python -m easyllm RUN/run.yaml")
]  # fmt: skip
"""Commands on the run that another one has made."""
NEEDS_GPUS = ("llama13b_zero", "llama13b_pipe data=text")
SLOW = ("smollm2_pipe", "data.engine=spark", "+smoke=cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages speak of."""
    folder = tmp_path_factory.mktemp("readme")
    write_files(folder)
    return folder


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    """The directory of a finished run, RUN in the pages: one of the commands before."""
    (command,) = [line for line in SHELL if line.endswith("training.optimizer.lr=1e-3")]
    easyllm(command, folder)
    (made,) = (path.parent for path in folder.glob("runs/demo-*/export")
               if run_of(path.parent) == (20, 1e-3))  # fmt: skip
    return shutil.copytree(made, folder / "RUN")


def run_of(made: Path) -> tuple[int, float]:
    training = yaml.safe_load((made / "run.yaml").read_text("utf-8"))["training"]
    return training["steps"], training["optimizer"]["lr"]


def words(command: str) -> list[str]:
    """The command with this interpreter."""
    first, *rest = shlex.split(command)
    assert first == "python"
    return [sys.executable, *rest]


def easyllm(command: str, cwd: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words(command), cwd=cwd, capture_output=True, text=True, timeout=540)
    assert done.returncode == status, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def test_the_readme_has_its_commands():
    assert len(SHELL) >= 15
    assert len(TABLE) == 8
    assert len(AFTERWARDS) == 2
    assert SHELL[:2] == ["make setup", "make demo"]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            c, marks=[pytest.mark.slow] * any(s in c for s in SLOW) + [needs_java] * ("spark" in c)
        )
        for c in SHELL[2:]
    ],
)
def test_commands(command, folder):
    done = easyllm(command, folder)
    if command.endswith("lr=1e-3,3e-4"):
        assert "train: up to date; skipped" in done.stderr, "the first point is the command before"


@pytest.mark.parametrize("command", [c for c in TABLE if "serve" not in c and "RUN" not in c])
def test_table_of_data_and_training(command, folder):
    if any(recipe in command for recipe in NEEDS_GPUS):
        command += " stages=[]"  # 8 and 64 GPUs: composed and checked here
    easyllm(command, folder)


@pytest.mark.parametrize("command", [c for c in TABLE if "RUN" in c and "serve" not in c])
def test_table_of_a_finished_run(command, finished):
    easyllm(command, finished.parent)


@pytest.mark.parametrize("command", [c for c in AFTERWARDS if "verify" in c or "evaluate" in c])
def test_commands_on_a_finished_run(command, finished):
    easyllm(command, finished.parent)


def test_tables_store_has_the_originals_tree(folder):
    commands = [c for c in TABLE if "data.dir=store" in c]
    easyllm(commands[-1], folder)
    store = folder / "store"
    label = "conversations_SmolLM2-135M-Instruct.Q4_1"
    for pattern in (
        f"tokens/{label}/conversations-part-00/conversations-part-00-part-00000.zstd.parquet",
        f"shuffled/{label}-part-000/{label}-part-000-part-00003.zstd.parquet",
        f"partitions/*-part-00003/{label}-part-000-part-00003.zstd.parquet",
        "partitions/data.info",
    ):
        assert list(store.glob(pattern)), pattern


@contextmanager
def serving(command: str, cwd: Path) -> Iterator[int]:
    """The port of the server that the command starts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [*words(command), f"serving.port={port}"], cwd=cwd, start_new_session=True
    )
    try:
        _wait_for_server(server, port)
        yield port
    finally:
        os.kill(server.pid, signal.SIGTERM)
        status = server.wait(timeout=60)
    assert status == 0


def test_serving_and_its_curl(finished):
    (command,) = [c for c in TABLE if "serve" in c]
    with serving(command, finished.parent) as port:
        (curl,) = [block.text for block in BLOCKS if block.text.startswith("curl")]
        done = subprocess.run(
            ["bash", "-c", curl.replace(":8000", f":{port}")],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (text,) = json.loads(done.stdout)["text"]
        assert isinstance(text, str)


def test_serving_and_openais_client(folder):
    (command,) = [b.text.strip() for b in BLOCKS if not b.kind and "stages=[serve]" in b.text]
    (program,) = [b.text for b in BLOCKS if b.kind == "python" and "openai" in b.text]
    with serving(command, folder) as port:
        done = subprocess.run(
            [sys.executable, "-c", program.replace(":8000", f":{port}")],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Paris" in done.stdout
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)
        assert b"app.js" in page.read()


def _wait_for_server(server: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(600):
        assert server.poll() is None, "the server has ended"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5)
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError("the server does not answer")


def test_the_refusal_is_the_one_shown(folder):
    (shown,) = [b.text for b in BLOCKS if b.text.startswith("$ python -m easyllm")]
    command, _, message = shown.partition("\n")
    done = easyllm(command.removeprefix("$ "), folder, status=2)
    assert done.stderr.strip() == message.strip()
