"""The serve stage: its address, its signals, its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from easyllm import runfile
from easyllm.errors import UserError
from easyllm.inference.prompts import model_name
from easyllm.paths import RunPaths
from easyllm.preflight import problems
from easyllm.spec.run import RunSpec
from easyllm.stages import load
from easyllm.stages.base import Rank
from tests.serving.served import LONG, spec
from tests.support import PATIENCE, run_spec, wait_for

BODY = {"messages": [{"user": "hi"}]}


class Worker:
    """The stage in a process of its own, as a rank runs it."""

    def __init__(self, folder: Path, model: Path, engine: str | None = None, **serving: Any):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        own = {
            "inference": {"engine": {"_target_": f"bad_engines.{engine}"}},
            "components": {"allow": ["bad_engines"], "path": [str(Path(__file__).parent)]},
        }
        self.run: RunSpec = spec(
            folder, model, serving={"port": self.port, **serving}, **(own if engine else {})
        )
        runfile.save(self.run, RunPaths(self.run).spec)
        command = [sys.executable, "-m", "easyllm.worker", str(RunPaths(self.run).spec), "serve"]
        environment = {**os.environ, "RANK": "0"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE)

    def status(self, path: str) -> int:
        try:
            return self.client.get(path).status_code
        except httpx.TransportError:
            return 0

    def ready(self) -> None:
        wait_for(lambda: self.status("/ready") == 200 or self.process.poll() is not None)

    def result(self) -> Any:
        logs = RunPaths(self.run).logs("serve")
        return json.loads((logs / "result.json").read_text())


def test_listens_while_loading_and_says_when_it_is_ready(tmp_path: Path, model: Path) -> None:
    worker = Worker(tmp_path, model)
    seen = set()
    while worker.status("/ready") != 200:
        seen.add((worker.status("/health"), worker.status("/ready")))
    assert (200, 503) in seen
    assert worker.process.stdout is not None
    welcome = b"".join(worker.process.stdout.readline() for _ in range(4)).decode()
    assert "serving small" in welcome and f"localhost:{worker.port}/generate" in welcome
    assert worker.client.post("/generate", json=BODY).status_code == 200
    with pytest.raises(UserError, match=rf"serving\.port={worker.port}: is in use"):
        load("serve").work(worker.run, Rank())
    entry = json.loads(worker.process.stdout.readline())
    assert (entry["route"], entry["status"]) == ("/generate", 200)
    worker.process.send_signal(signal.SIGINT)
    assert worker.process.wait(PATIENCE) == 0
    assert worker.result() == {"requests": 1, "generated_tokens": 8}


def test_sigterm_lets_what_is_under_way_end(tmp_path: Path, model: Path) -> None:
    worker = Worker(tmp_path, model, grace_seconds=2 * PATIENCE)
    worker.ready()
    answers: list[httpx.Response] = []
    asked = {**BODY, "sampling": {"max_tokens": LONG}}
    plain = threading.Thread(
        target=lambda: answers.append(worker.client.post("/generate", json=asked))
    )
    with worker.client.stream("POST", "/generate", json={**asked, "stream": True}) as response:
        chunks = response.iter_raw()
        last = next(chunks)
        plain.start()
        time.sleep(0.2)
        worker.process.send_signal(signal.SIGTERM)
        wait_for(lambda: worker.status("/ready") == 503)
        refused = worker.client.post("/generate", json=BODY)
        assert refused.status_code == 503 and "stopping" in refused.json()["error"]["message"]
        assert worker.status("/health") == 200
        for chunk in chunks:
            last = (last + chunk)[-200_000:]
    plain.join(PATIENCE)
    assert worker.process.wait(PATIENCE) == 0
    (answer,) = answers
    assert json.loads(last.split(b"\0")[-2])["text"] == answer.json()["text"]
    assert worker.result() == {"requests": 2, "generated_tokens": 2 * LONG}


@pytest.mark.parametrize("twice", [False, True])
def test_the_grace_ends(tmp_path: Path, model: Path, twice: bool) -> None:
    worker = Worker(tmp_path, model, grace_seconds=2 * PATIENCE if twice else 0.5)
    worker.ready()
    asked = {**BODY, "stream": True, "sampling": {"max_tokens": 4000}}
    begun = time.monotonic()
    with worker.client.stream("POST", "/generate", json=asked) as response:
        chunks = response.iter_raw()  # dropped, it would close the connection
        next(chunks)
        worker.process.send_signal(signal.SIGTERM)
        wait_for(lambda: worker.status("/ready") == 503)
        if twice:
            worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(PATIENCE) == 0
    assert time.monotonic() - begun > 0.5
    assert worker.result()["generated_tokens"] < 4000


def front_of(worker: Worker) -> psutil.Process:
    (front,) = psutil.Process(worker.process.pid).children()
    assert "easyllm.serving.api_process" in front.cmdline()
    return front


def test_stopped_while_the_model_is_loading(tmp_path: Path, model: Path) -> None:
    worker = Worker(tmp_path, model, engine="Slow")
    wait_for(lambda: worker.status("/health") == 200)
    assert worker.status("/ready") == 503
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(PATIENCE) == 0
    assert worker.result() == {"requests": 0, "generated_tokens": 0}


def test_the_api_ends_with_the_process_of_the_model(tmp_path: Path, model: Path) -> None:
    worker = Worker(tmp_path, model)
    worker.ready()
    front = front_of(worker)
    worker.process.kill()
    front.wait(PATIENCE)
    assert worker.status("/health") == 0


def test_the_model_ends_with_the_process_of_the_api(tmp_path: Path, model: Path) -> None:
    worker = Worker(tmp_path, model)
    worker.ready()
    front_of(worker).kill()
    _, said = worker.process.communicate(timeout=PATIENCE)
    assert worker.process.returncode == 1
    assert "the API's process ended with status -9" in said.decode()


def test_an_engine_that_breaks_down(tmp_path: Path, model: Path) -> None:
    """The answer under way ends, and those who ask after it are told."""
    worker = Worker(tmp_path, model, engine="Breaking")
    worker.ready()
    answer = worker.client.post("/generate", json={**BODY, "sampling": {"max_tokens": LONG}})
    assert answer.status_code == 500, answer.text
    assert "the engine has failed" in answer.json()["error"]["message"]
    wait_for(lambda: worker.status("/ready") == 503)
    refused = worker.client.post("/generate", json=BODY)
    assert refused.status_code == 503
    assert "the engine has failed" in refused.json()["error"]["message"]
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(PATIENCE) == 0


def test_a_model_that_cannot_be_loaded(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):  # and no tokenizer
        (folder / name).write_bytes((model / name).read_bytes())
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    keys = tmp_path / "keys"
    keys.write_text("sesame\n")
    keys.chmod(0o644)
    run = spec(tmp_path, folder, serving={"port": port, "api_key_file": str(keys)})
    with pytest.raises(UserError, match="transformers cannot load"):
        load("serve").work(run, Rank())
    assert capsys.readouterr().err.count(f"chmod 600 {keys}\n") == 1


def test_a_models_name_tells_nothing_of_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name(path: str | None, **config: Any) -> str:
        return model_name(run_spec(tmp_path, {"inference": {"model": path}, **config}))

    export = tmp_path / "run" / "export"
    for folder in (export, tmp_path / "other" / "export", tmp_path / "plain" / "export"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (tmp_path / "other" / "run.yaml").write_text("name: x")
    (tmp_path / "tiny-q4.gguf").write_text("")
    assert name(None, name="demo") == "demo" == name(str(export), name="demo")
    assert name(str(tmp_path / "other" / "export")) == "other"
    assert name(str(tmp_path / "plain" / "export") + "/") == "export"
    assert name(str(tmp_path / "tiny-q4.gguf")) == "tiny-q4"
    assert name("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"
    monkeypatch.chdir(tmp_path / "other")
    assert name(".") == "other" and name("../plain") == "plain"


@pytest.mark.parametrize(
    ("serving", "said"),
    [
        ({"host": "no-such-host.invalid"}, r"serving\.host=no-such-host\.invalid: no such host"),
        ({"host": "a..b"}, r"serving\.host=a\.\.b: no such host"),
        ({"host": 70 * "x"}, r"serving\.host=x+: no such host"),
        ({"host": "192.0.2.1"}, r"serving\.host=192\.0\.2\.1: cannot be served at"),
    ],
)
def test_an_address_that_cannot_be_served_at(
    tmp_path: Path, model: Path, serving: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        load("serve").work(spec(tmp_path, model, serving=serving), Rank())


def test_beyond_this_machine_a_key_is_needed(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EASYLLM_API_KEY", raising=False)

    def found(**serving: Any) -> list[tuple[str, Any]]:
        run = spec(tmp_path, model, stages=["serve"], serving=serving)
        return [(p.key, p.value) for p in problems(run)]

    assert found() == []
    assert found(host="0.0.0.0") == [("serving.host", "0.0.0.0")]
    assert found(host="0.0.0.0", allow_unauthenticated=True) == []
    assert found(allowed_hosts=["a.org", "http://b.org"]) == [
        ("serving.allowed_hosts", "http://b.org")
    ]
    keys = tmp_path / "keys"
    assert found(api_key_file=str(keys)) == [("serving.api_key_file", str(keys))]
    keys.write_text("sesame\n")
    assert found(host="0.0.0.0", api_key_file=str(keys)) == []
    monkeypatch.setenv("EASYLLM_API_KEY", "sesame")
    assert found(host="0.0.0.0") == []
