"""Limits, clients that misbehave, what is told of it all."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from easyllm.inference.engine_protocol import EngineFailed
from easyllm.serving import service
from tests.serving.served import LONG, Served, spec
from tests.support import PATIENCE, wait_for

MB = 1_000_000
ENDLESS = {"messages": [{"user": "b"}], "sampling": {"max_tokens": LONG}}


def test_health_and_ready(served: Served, narrow: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for client in (served.client, httpx.Client(base_url=narrow.url)):
        assert client.get("/health").json() == {"status": "ok", "model": "small"}
        assert client.get("/ready").json() == {"ready": True, "reason": None}
    engine, served.service.engine = served.service.engine, None
    try:
        assert served.client.get("/health").status_code == 200
        response = served.client.get("/ready")
        assert (response.status_code, response.json()["reason"]) == (503, "the model is loading")
        with ThreadPoolExecutor() as pool:  # whoever asks now waits a while
            early = pool.submit(served.text)
            time.sleep(0.2)
            assert not early.done()
            served.service.engine = engine
            assert early.result(30) == served.text()
        served.service.engine = None
        monkeypatch.setattr(service, "PATIENCE", 0)
        response = served.generate()
        assert response.status_code == 503 and response.headers["Retry-After"]
        assert "the model is loading" in response.json()["error"]["message"]
    finally:
        served.service.engine = engine


def test_an_engine_that_broke_down(served: Served, model: Path, tmp_path: Path) -> None:
    class Broken:
        tokenizer, max_positions, waiting = served.engine.tokenizer, 4096, 0
        failed = False

        async def generate(self, prompt: Any, sampling: Any) -> Any:
            raise EngineFailed("out of memory")
            yield

    engine = Broken()
    broken = Served(spec(tmp_path, model), engine)
    try:
        for stream in (False, True):
            response = broken.generate(stream=stream)
            assert response.status_code == 500
            assert "out of memory" in response.json()["error"]["message"]
        assert broken.idle()
        engine.failed = True
        assert broken.client.get("/health").status_code == 503
        assert broken.client.get("/ready").status_code == 503
    finally:
        broken.close()


def test_limits(narrow: Served) -> None:
    for sampling, said in (
        ({"max_tokens": 3501}, "max_tokens=3501: this server allows 3500"),
        ({"n": 4}, "n=4: this server allows 3"),
    ):
        status, error = narrow.error("/generate", messages=[{"user": "a"}], sampling=sampling)
        assert (status, said in error["message"]) == (400, True)
    status, error = narrow.error("/v1/completions", prompt="x" * 301)
    assert status == 400
    assert "301 tokens" in error["message"] and "max_prompt_tokens allows 300" in error["message"]


def test_a_body_too_large(narrow: Served) -> None:
    for content in (b"x" * 20_000, (b"x" * 1000 for _ in range(20))):  # with its length, without
        response = narrow.client.post(
            "/generate", content=content, headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 413
        assert "10,000 bytes" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[" * 100_000, b'{"messages": ' + b"[" * 50_000, b"\xff\xfe", b"null", b"[]",
        b'{"messages": [{"user": "\\ud800"}]}', b'{"messages": [{"user": "a"}], "sampling": 1e999}',
        b'{"messages": [{"user": "a"}], "sampling": {"seed": ' + b"9" * 5000 + b"}}",
        b'{"messages": [{"user": "a"}], "sampling": {"temperature": NaN}}',
    ],
    ids=lambda content: repr(content[:24]),
)  # fmt: skip
def test_malformed_json(served: Served, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    for path in ("/generate", "/v1/chat/completions", "/v1/completions"):
        response = served.client.post(path, content=content, headers=headers)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["message"]


def test_a_huge_conversation(served: Served) -> None:
    turns = [{"user": "x"}, {"assistant": "y"}] * 20_000
    assert served.generate(*turns).status_code == 400
    response = served.client.post("/generate", json={"messages": [{"user": "x" * 5 * MB}]})
    assert response.status_code == 413


def test_json_must_say_that_it_is(served: Served) -> None:
    response = served.client.post("/generate", content=json.dumps(ENDLESS))
    assert response.status_code == 415
    kind = {"Content-Type": "text/plain"}
    response = served.client.post("/generate", content=json.dumps(ENDLESS), headers=kind)
    assert response.status_code == 415


def raw(served: Served, head: str, body: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE)
    host = "Host: localhost\r\nAuthorization: Bearer sesame\r\n"
    connection.sendall((head + host + "\r\n").encode() + body)
    return connection


POST = "POST /generate HTTP/1.1\r\nContent-Type: application/json\r\n"


def test_half_a_body(narrow: Served) -> None:
    with raw(narrow, POST + "Content-Length: 100\r\n", b'{"messages":') as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")
    with raw(narrow, POST + "Content-Length: 100\r\n", b'{"messages":'):
        pass  # left in the midst of it
    wait_for(narrow.idle)
    assert narrow.generate().status_code == 200


def test_a_full_queue(narrow: Served) -> None:
    """Eight answers at a time, and two may wait."""
    before = narrow.metric("easyllm_aborted_answers_total", route="/generate")
    asked = {**ENDLESS, "stream": True}
    head = POST + f"Content-Length: {len(json.dumps(asked))}\r\n"
    clients = [raw(narrow, head, json.dumps(asked).encode()) for _ in range(10)]
    try:
        wait_for(lambda: narrow.service.active == 10)
        wait_for(lambda: narrow.metric("easyllm_running_answers") == 8)
        assert narrow.metric("easyllm_queue_size") == 2
        response = narrow.generate()
        assert response.status_code == 429
        assert int(response.headers["Retry-After"]) >= 1
        assert response.json()["error"]["type"] == "rate_limit_error"
    finally:
        for client in clients:
            client.close()
    wait_for(narrow.idle)
    assert narrow.generate().status_code == 200
    assert narrow.metric("easyllm_aborted_answers_total", route="/generate") == before + 10


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_work(served: Served, path: str, stream: bool) -> None:
    body: dict[str, Any] = {**ENDLESS, "stream": stream}
    if path != "/generate":
        body = {**body, "max_tokens": LONG, "n": 2}
        del body["sampling"]
    text = json.dumps(body)
    head = f"POST {path} HTTP/1.1\r\nContent-Type: application/json\r\n"
    steps: list[None] = []
    counting = served.engine.model.register_forward_hook(lambda *_: steps.append(None))
    connection = raw(served, head + f"Content-Length: {len(text)}\r\n", text.encode())
    wait_for(lambda: served.metric("easyllm_running_answers") == (1 if path == "/generate" else 2))
    time.sleep(0.1)
    connection.close()
    wait_for(lambda: served.idle() and not served.engine.unfinished)
    counting.remove()
    assert len(steps) < LONG


def test_a_slow_reader_holds_nobody_up(served: Served) -> None:
    body = json.dumps({**ENDLESS, "stream": True})
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", served.port))
        head = POST + f"Host: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        slow.sendall(head.encode() + body.encode())  # and reads nothing
        time.sleep(0.3)
        assert [served.text(max_tokens=20) for _ in range(3)]
        assert served.service.active == 1
    wait_for(served.idle)


def test_drop_oldest_turns(served: Served, model: Path, tmp_path: Path) -> None:
    run = spec(tmp_path, model, serving={"context_overflow": "drop_oldest_turns"})
    dropping = Served(run, served.engine)
    try:
        system, last = {"system": "be brief"}, {"user": "and now?"}
        turns = [{"user": "x" * 2000}, {"assistant": "y" * 1500}, {"user": "z" * 900},
                 {"assistant": "w"}]  # fmt: skip
        assert served.generate(system, *turns, last).status_code == 400
        # with the first two gone it fits
        assert dropping.text(system, *turns, last) == served.text(system, *turns[2:], last)
        assert dropping.text(*turns, last) == served.text(*turns[2:], last)
        assert dropping.text(*turns[2:], last) == served.text(*turns[2:], last)
        response = dropping.generate(system, {"user": "x" * 5000})
        assert response.status_code == 400
        assert "4096" in response.json()["error"]["message"]
    finally:
        dropping.close()


def test_metrics(served: Served) -> None:
    before = served.metric("easyllm_completion_tokens_total", route="/v1/completions")
    list(served.openai.completions.create(model="small", prompt="abc", stream=True, max_tokens=50))
    served.client.get("/no/such/page")
    text = served.client.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    wanted = {"easyllm_requests", "easyllm_request_seconds", "easyllm_prompt_tokens",
              "easyllm_completion_tokens", "easyllm_queue_size", "easyllm_running_answers",
              "easyllm_time_to_first_token_seconds",
              "easyllm_inter_token_latency_seconds"}  # fmt: skip
    assert wanted <= set(families)
    tokens = served.metric("easyllm_completion_tokens_total", route="/v1/completions")
    assert tokens == before + 50
    labels = {"route": "/v1/completions"}
    assert served.metric("easyllm_time_to_first_token_seconds_count", **labels) >= 1
    assert served.metric("easyllm_inter_token_latency_seconds_count", **labels) >= 1
    assert served.metric("easyllm_requests_total", route="other", status="404") >= 1


def test_the_access_log(
    served: Served,
    narrow: Served,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("easyllm.access"), "propagate", True)
    caplog.set_level(logging.INFO, "easyllm.access")

    def entries() -> list[dict[str, Any]]:
        return [json.loads(record.message) for record in caplog.records]

    def logged(server: Served, **more: Any) -> dict[str, Any]:
        response = server.generate("my secret", **more)
        server.client.get("/health")
        id_ = response.headers["X-Request-Id"]
        wait_for(lambda: id_ in [entry["id"] for entry in entries()])  # after the response
        (entry,) = (entry for entry in entries() if entry["id"] == id_)
        return entry

    entry = logged(served)
    assert "secret" not in json.dumps(entry)
    assert (entry["method"], entry["route"], entry["status"]) == ("POST", "/generate", 200)
    assert (entry["prompt_tokens"], entry["completion_tokens"]) == (27, 8)
    assert 0 < entry["first_token_seconds"] < entry["seconds"]
    for stream in (False, True):
        entry = logged(narrow, stream=stream)
        assert entry["prompt"] == [{"user": "my secret"}]
        assert entry["answers"] == served.generate("my secret").json()["text"]
    assert "/health" not in {entry["route"] for entry in entries()}


def test_no_other_origin_unless_allowed(served: Served, narrow: Served) -> None:
    def preflight(server: Served, origin: str) -> httpx.Response:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST",
                   "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
        return httpx.options(f"{server.url}/v1/chat/completions", headers=headers)

    ours = "https://chat.example.org"
    name = "access-control-allow-origin"
    assert name not in preflight(served, ours).headers
    assert name not in served.client.get("/v1/models", headers={"Origin": ours}).headers
    assert preflight(narrow, ours).headers[name] == ours
    assert name not in preflight(narrow, "https://elsewhere.example.org").headers
    assert narrow.client.get("/v1/models", headers={"Origin": ours}).headers[name] == ours


def test_memory_of_requests_does_not_grow(served: Served) -> None:
    """What a request leaves behind: no task, no thread, nothing in the engine."""
    for _ in range(3):
        served.text()
    threads = threading.active_count()
    for _ in range(20):
        served.text(max_tokens=1)
    assert threading.active_count() <= threads
    assert served.idle() and not served.engine.unfinished
