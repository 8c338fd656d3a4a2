"""The API server, asked over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from easyllm import runfile
from easyllm.errors import UserError
from easyllm.inference.prompts import encode_messages
from easyllm.paths import RunPaths
from easyllm.serving.app import Service, application
from easyllm.spec.run import RunSpec
from easyllm.stages import load
from easyllm.stages.base import Rank
from tests.inference.small import save_model
from tests.support import run_spec

LONG = 3000
"""Tokens that take the small model several seconds."""


class Served:
    """A client of a server that runs in a thread of this process."""

    def __init__(self, run: RunSpec, model: Path):
        generator = run.inference.engine.load(model, run)
        encode = partial(encode_messages, run, generator.tokenizer)
        self.service = Service(generator, encode, run.inference.sampling, run.seed, together=4)
        self.steps = 0
        generator.model.register_forward_pre_hook(self.step)
        config = uvicorn.Config(application(self.service, "small"), log_level="warning")
        self.server = uvicorn.Server(config)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.client = httpx.Client(base_url=self.url, timeout=120)
        run_server = partial(self.server.run, sockets=[self.listener])
        self.thread = threading.Thread(target=run_server, daemon=True)
        self.thread.start()

    def step(self, *_: object) -> None:
        self.steps += 1

    def post(self, user: str = "hello", **body: Any) -> httpx.Response:
        return self.client.post("/generate", json={"messages": [{"user": user}], **body})

    def text(self, *args: str, **body: Any) -> str:
        response = self.post(*args, **body)
        assert response.status_code == 200, response.text
        assert set(response.json()) == {"text"}
        (text,) = response.json()["text"]
        return text

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)
        self.service.close()
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(
        tmp_path_factory.mktemp("model"), chat=True, max_position_embeddings=4096, vocab_size=257
    )


def spec(folder: Path, model: Path, **config: Any) -> RunSpec:
    inference = {"model": str(model), "sampling": {"max_tokens": 8}}
    return run_spec(folder, {"model": {"dtype": "float32"}, "inference": inference, **config})


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(spec(tmp_path_factory.mktemp("run"), model), model)
    yield served
    served.close()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_health(served: Served) -> None:
    assert served.client.get("/health").json() == {"status": "ok", "model": "small"}


def test_answers_with_the_servers_sampling_unless_asked(served: Served) -> None:
    text = served.text()
    assert text
    assert text == served.text()
    longer = served.text(sampling={"max_tokens": 24})
    assert longer.startswith(text[:4]) and len(longer) > len(text)


def test_both_shapes_of_a_message(served: Served) -> None:
    ours = [{"system": "be brief"}, {"user": "hi"}, {"assistant": "yes"}, {"user": "go on"}]
    openai = [{"role": role, "content": text} for turn in ours for role, text in turn.items()]
    answers = {served.client.post("/generate", json={"messages": m}).text for m in (ours, openai)}
    assert len(answers) == 1
    assert served.client.post("/generate", json={"messages": ours[1:]}).text not in answers


def test_the_chat_template_is_used(served: Served, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", max_position_embeddings=4096)
    plain = Served(spec(tmp_path, base), base)
    try:
        assert served.text("hi") == plain.text("<user>hi\n<assistant>")
        turns = {"messages": [{"user": "a"}, {"assistant": "b"}, {"user": "c"}]}
        answer = plain.client.post("/generate", json=turns).json()["text"][0]
        assert answer == plain.text("a\nb\nc")  # a base model goes on with the text
    finally:
        plain.close()


def test_a_stream_is_nul_terminated_and_cumulative(served: Served) -> None:
    asked = {"messages": [{"user": "héllo"}], "stream": True, "sampling": {"max_tokens": 40}}
    with served.client.stream("POST", "/generate", json=asked) as response:
        assert response.status_code == 200
        chunks = list(response.iter_raw())
    body = b"".join(chunks)
    assert body.endswith(b"\0")
    texts = [json.loads(part)["text"] for part in body[:-1].split(b"\0")]
    assert all(len(text) == 1 for text in texts)
    assert len(texts) > 5 and len(chunks) > 1
    grown = [text[0] for text in texts]
    assert all(len(a) < len(b) for a, b in pairwise(grown[:-1]))
    assert not any(text.endswith("\ufffd") for text in grown[:-1])
    assert grown[-1] == served.text("héllo", sampling={"max_tokens": 40})


def test_seeds(served: Served) -> None:
    def warm(**more: int) -> str:
        return served.text(sampling={"temperature": 1.0, "max_tokens": 20, **more})

    assert warm(seed=1) == warm(seed=1) != warm(seed=2)
    assert warm() != warm()
    # nearly without limits, so every setting is taken
    narrow = {"top_k": 1, "top_p": 0.5, "repetition_penalty": 1.0}
    assert warm(**narrow) == served.text(sampling={"max_tokens": 20})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "messages: Field required"),
        ({"messages": []}, "messages: "),
        ({"messages": "hi"}, "messages: "),
        ({"messages": [[{"user": "hi"}]]}, "messages.0: "),
        ({"messages": [{"user": 3}]}, "messages.0.user: "),
        ({"messages": [{"human": "hi"}]}, "not of 'human'"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "not of 'tool'"),
        ({"messages": [{"user": "a", "assistant": "b"}]}, "the keys [user, assistant]"),
        ({"messages": [{}]}, "the keys []"),
        ({"sampling": {"max_tokenz": 3}}, "sampling.max_tokenz: "),
        ({"sampling": {"max_tokens": 0}}, "sampling.max_tokens: "),
        ({"sampling": {"max_tokens": "3"}}, "sampling.max_tokens: "),
        ({"sampling": {"temperature": -1}}, "sampling.temperature: "),
        ({"sampling": {"top_p": 2}}, "sampling.top_p: "),
        ({"stream": "yes"}, "stream: "),
        ({"n": 2}, "n: "),
    ],
)
def test_mistakes_are_named(served: Served, body: dict[str, Any], said: str) -> None:
    if body and "messages" not in body:
        body = {"messages": [{"user": "hi"}], **body}
    response = served.client.post("/generate", json=body)
    assert response.status_code == 422
    assert said in response.json()["detail"]


def test_what_is_not_json_is_refused(served: Served) -> None:
    headers = {"Content-Type": "application/json"}
    response = served.client.post("/generate", content=b"{", headers=headers)
    assert response.status_code == 422
    assert "JSON" in response.json()["detail"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_too_long_is_refused(served: Served, stream: bool) -> None:
    response = served.post("x" * 5000, stream=stream)
    assert response.status_code == 400
    assert "4096 positions" in response.json()["detail"]


def test_a_short_request_does_not_wait_for_a_long_one(served: Served) -> None:
    asked = {"messages": [{"user": "a"}], "stream": True, "sampling": {"max_tokens": LONG}}
    with served.client.stream("POST", "/generate", json=asked) as response:
        chunks = response.iter_raw()
        next(chunks)
        begun = served.service.tokens
        assert served.text()
        assert served.service.tokens - begun < LONG / 2


def test_answers_do_not_mix(served: Served) -> None:
    questions = [f"question {n}" for n in range(6)]
    alone = [served.text(question) for question in questions]
    with ThreadPoolExecutor(len(questions)) as pool:
        together = list(pool.map(served.text, questions))
    assert together == alone
    assert len(set(alone)) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_work(served: Served, stream: bool) -> None:
    body = {"messages": [{"user": "b"}], "stream": stream, "sampling": {"max_tokens": LONG}}
    before = served.steps
    with httpx.Client(base_url=served.url) as client, pytest.raises(httpx.ReadTimeout):  # noqa: SIM117
        with client.stream("POST", "/generate", json=body, timeout=0.3) as response:
            for _ in response.iter_raw():
                if served.steps > before + 20:
                    raise httpx.ReadTimeout("left")

    def resting() -> bool:
        steps = served.steps
        time.sleep(0.3)
        return served.steps == steps > before

    wait_for(resting)
    assert 0 < served.steps - before < LONG - 100


def test_more_requests_than_threads(served: Served) -> None:
    asked = {"sampling": {"temperature": 1.0, "seed": 3, "max_tokens": 12}}
    questions = [f"question {n}" for n in range(12)]
    alone = [served.text(question, **asked) for question in questions]
    with ThreadPoolExecutor(len(questions)) as pool:
        together = list(pool.map(lambda question: served.text(question, **asked), questions))
    assert together == alone


def worker(run: RunSpec) -> subprocess.Popen[bytes]:
    runfile.save(run, RunPaths(run).spec)
    command = [sys.executable, "-m", "easyllm.worker", str(RunPaths(run).spec), "serve"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "RANK": "0"})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_stage_serves_until_it_is_stopped(
    tmp_path: Path, model: Path, number: signal.Signals
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    run = spec(tmp_path, model, serving={"port": port})
    process = worker(run)
    assert process.stdout is not None
    welcome = b"".join(process.stdout.readline() for _ in range(3)).decode()
    assert str(model) in welcome and f"localhost:{port}/generate" in welcome
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120)

    def up() -> bool:
        try:
            return client.get("/health").json()["model"] == str(model)
        except httpx.ConnectError:
            return False

    wait_for(up)
    body = {"messages": [{"user": "hi"}]}
    assert client.post("/generate", json=body).status_code == 200
    with pytest.raises(UserError, match=rf"serving\.port={port}: is in use"):
        load("serve").work(run, Rank())
    endless = {**body, "stream": True, "sampling": {"max_tokens": LONG}}
    with client.stream("POST", "/generate", json=endless) as response:
        next(response.iter_raw())
        process.send_signal(number)
        assert process.wait(60) == 0
    result = json.loads((RunPaths(run).logs("serve") / "result.json").read_text())
    assert result["requests"] == 2
    assert 8 < result["generated_tokens"] < LONG


@pytest.mark.parametrize(
    ("serving", "said"),
    [
        ({"host": "no-such-host.invalid"}, r"serving\.host=no-such-host\.invalid: no such host"),
        ({"host": "192.0.2.1"}, r"serving\.host=192\.0\.2\.1: cannot be served at"),
    ],
)
def test_an_address_that_cannot_be_served_at(
    tmp_path: Path, model: Path, serving: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        load("serve").work(spec(tmp_path, model, serving=serving), Rank())
