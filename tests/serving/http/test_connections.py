"""Requests before they reach a route: their headers, hosts, methods and paths."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from easyllm.serving.errors import Refused
from easyllm.serving.http import protocol
from easyllm.serving.http.hosts import Hosts, host_name
from easyllm.spec.inference import ServingSpec
from tests.serving.served import Served, spec
from tests.support import PATIENCE

HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def hasty(
    served: Served, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A server with a key that waits half a second for headers, over the engine of the other."""
    limits = {"max_header_kb": 4, "header_seconds": 0.5, "body_seconds": 0.5}
    run = spec(tmp_path_factory.mktemp("hasty"), model, serving=limits)
    hasty = Served(run, served.engine, keys=("sesame",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "LINGER", 0.1)
        yield hasty
    hasty.close()


def exchanged(served: Served, *parts: bytes, pause: float = 0.0) -> bytes:
    """What comes until the server closes the connection, ``parts`` having been sent."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        received = b""
        while more := connection.recv(1 << 16):
            received += more
        return received


def refusal(received: bytes) -> tuple[bytes, dict[str, Any]]:
    head, _, body = received.partition(b"\r\n\r\n")
    return head.split()[1], json.loads(body)["error"]


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"X: " + b"a" * 5000 + b"\r\n\r\n",
        HEAD + b"X: " + b"a" * 5000,
        HEAD + b"X: a\r\n" * 1000,
        b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["whole", "one that does not end", "many", "address"],
)
def test_large_headers(hasty: Served, sent: bytes) -> None:
    status, error = refusal(exchanged(hasty, sent))
    assert status == b"431" and "4,000 bytes (serving.max_header_kb)" in error["message"]


def test_headers_within_the_limit(hasty: Served) -> None:
    fine = HEAD + b"X: " + b"a" * 3900 + b"\r\nConnection: close\r\n\r\n"
    assert exchanged(hasty, fine).startswith(b"HTTP/1.1 200")
    assert exchanged(hasty, HEAD + b"Connection:", b" close\r\n\r\n", pause=0.1).startswith(
        b"HTTP/1.1 200"
    )


def test_slow_headers(hasty: Served) -> None:
    status, error = refusal(exchanged(hasty, HEAD, *[b"X: a\r\n"] * 4, pause=0.1))
    assert status == b"408" and "0.5 seconds (serving.header_seconds)" in error["message"]
    assert exchanged(hasty) == b""  # one that asks nothing is closed without words


def test_a_refused_body_that_does_not_end(hasty: Served) -> None:
    """Without a key the answer comes before the body, which may not keep the connection."""
    post = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    assert exchanged(hasty, post + b"Content-Length: 100\r\n\r\n{").startswith(b"HTTP/1.1 401")
    chunked = post + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nX: "
    answer = exchanged(hasty, chunked, b"a" * 20_000, pause=0.1)
    assert answer.startswith(b"HTTP/1.1 401")


def test_a_connection_is_used_again(hasty: Served) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=PATIENCE) as connection:
        for _ in range(2):
            connection.sendall(HEAD + b"\r\n")
            received = b""
            while b"}" not in received:
                received += connection.recv(1 << 16)
            assert received.startswith(b"HTTP/1.1 200")
            time.sleep(0.6)  # longer than headers may take


def test_what_is_not_http(hasty: Served) -> None:
    status, error = refusal(exchanged(hasty, b"\x16\x03\x01\x02\x00\x01\r\n\r\n"))
    assert (status, error["type"]) == (b"400", "invalid_request_error")


def test_no_websocket_gets_past_the_key(hasty: Served) -> None:
    asked = (
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\n"
        b"Upgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert exchanged(hasty, asked).startswith(b"HTTP/1.1 401")


def test_head_wherever_get_works(served: Served, hasty: Served) -> None:
    for path in ("/", "/app.js", "/health", "/ready", "/v1/models", "/v1/models/small", "/metrics"):
        got, asked = served.client.get(path), served.client.head(path)
        assert (asked.status_code, asked.content) == (got.status_code, b"") == (200, b"")
        assert asked.headers["Content-Type"] == got.headers["Content-Type"]
    assert hasty.client.head("/v1/models").status_code == 200
    assert httpx.head(f"{hasty.url}/v1/models").status_code == 401
    wrong = served.client.head("/generate")
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
    response = served.client.put("/health")
    assert (response.status_code, response.headers["Allow"]) == (405, "GET, HEAD")
    assert response.json()["error"]["message"] == "/health takes GET, HEAD"


def test_a_slash_at_the_end(served: Served, hasty: Served) -> None:
    for path in ("/health", "/ready", "/v1/models", "/v1/models/small"):
        response = served.client.get(path + "/")
        assert response.status_code == 200 and response.json() == served.client.get(path).json()
    asked = {"prompt": "hi", "max_tokens": 2}
    assert served.client.post("/v1/completions/", json=asked).status_code == 200
    assert httpx.get(f"{hasty.url}/health/").status_code == 200  # without the key
    assert httpx.get(f"{hasty.url}/v1/models/").status_code == 401
    status, error = served.error("/v1/complete", prompt="hi")
    assert (status, error["code"]) == (404, "unknown_url") and "/v1/complete" in error["message"]


LOCAL = ["localhost", "LocalHost:8000", "localhost.", "chat.localhost", "127.0.0.1:1", "127.8.8.8",
         "[::1]:8000", ""]  # fmt: skip
FOREIGN = ["evil.example.org", "evil.example.org:8000", "localhost.example.org", "10.0.0.1",
           "evil@localhost", "localhost:x", "[::1", "127.0.0.1.example.org", "0.0.0.0"]  # fmt: skip


def test_a_server_without_a_key_goes_by_names_of_its_machine(served: Served, hasty: Served) -> None:
    for host in LOCAL:
        assert served.client.get("/v1/models", headers={"Host": host}).status_code == 200, host
    for host in FOREIGN:
        for path in ("/v1/models", "/health", "/"):
            response = served.client.get(path, headers={"Host": host})
            assert response.status_code == 403, host
        assert response.json()["error"]["code"] == "host_not_allowed"
        assert "serving.allowed_hosts" in response.json()["error"]["message"]
    two = b"GET /health HTTP/1.1\r\nHost: evil.example.org\r\nHost: localhost\r\n"
    assert exchanged(served, two + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 403")
    old = exchanged(served, b"GET /health HTTP/1.0\r\n\r\n")
    assert old.startswith(b"HTTP/1.1 200")
    assert hasty.client.get("/v1/models", headers={"Host": FOREIGN[0]}).status_code == 200


@pytest.mark.parametrize(
    ("serving", "keyed", "known", "unknown"),
    [
        ({"host": "127.0.0.1", "allowed_hosts": ("Chat.Example.org",)}, False,
         ["chat.example.org:80", "localhost"], ["example.org"]),
        ({"host": "127.0.0.1", "allowed_hosts": ("a.org",)}, True, ["a.org"], ["b.org"]),
        ({"host": "0.0.0.0", "allow_unauthenticated": True}, False, ["b.org", "10.0.0.1"], []),
        ({"host": "0.0.0.0", "allow_unauthenticated": True, "allowed_hosts": ("a.org",)}, False,
         ["a.org", "127.0.0.1"], ["b.org"]),
        ({"host": "::1"}, False, ["[::1]:8000"], ["b.org"]),
    ],
)  # fmt: skip
def test_names_that_a_server_was_told(
    serving: dict[str, Any], keyed: bool, known: list[str], unknown: list[str]
) -> None:
    hosts = Hosts(ServingSpec(**serving), keyed)
    for host in known:
        hosts.check([(b"host", host.encode())])
    for host in unknown:
        with pytest.raises(Refused):
            hosts.check([(b"host", host.encode())])


def test_what_is_no_name_of_a_host() -> None:
    assert host_name("a.org") == host_name("A.org.:80") == "a.org"
    assert [host_name(host) for host in ("http://a.org", "a b", "a/b", "", "a?b")] == [None] * 5
