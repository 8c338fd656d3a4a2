"""What goes over the wire of a stream, and what is encoded beside the event loop."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from easyllm.serving.app import Application
from easyllm.serving.http.auth import Keys
from easyllm.serving.service import SHORT, Service
from easyllm.serving.streaming import Last, Stream
from tests.serving.served import Served, spec


async def sent(parts: AsyncGenerator[bytes, None]) -> list[tuple[bytes, bool]]:
    found: list[tuple[bytes, bool]] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            found.append((message["body"], message["more_body"]))

    await Stream(parts, "text/plain").stream_response(send)
    return found


@pytest.mark.parametrize("ended", [False, True])
def test_the_last_part_takes_the_end_with_it(ended: bool) -> None:
    async def parts() -> AsyncGenerator[bytes, None]:
        yield b"a"
        yield Last(b"b") if ended else b"b"

    end = [(b"b", False)] if ended else [(b"b", True), (b"", False)]
    assert asyncio.run(sent(parts())) == [(b"a", True), *end]


def test_an_answer_ends_in_one_message(served: Served) -> None:
    """The last piece, the usage, ``[DONE]`` and the end: clients are woken once."""
    asked = {"prompt": "a", "max_tokens": 4, "stream": True, "ignore_eos": True}
    asked["stream_options"] = {"include_usage": True}
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": "/v1/completions", "raw_path": b"/v1/completions",
        "query_string": b"", "root_path": "", "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    parts: list[Any] = []

    async def call() -> None:
        coming = [{"type": "http.request", "body": json.dumps(asked).encode()}]

        async def receive() -> Any:
            return coming.pop() if coming else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            parts.append(message)

        await Application(served.service, Keys(())).asgi(scope, receive, send)

    asyncio.run(call())
    assert [part.get("more_body") for part in parts].count(False) == 1
    assert not parts[-1]["more_body"]
    *_, last, usage, done, end = parts[-1]["body"].split(b"\n\n")
    assert b'"finish_reason":"length"' in last and b'"completion_tokens": 4' in usage
    assert (done, end) == (b"data: [DONE]", b"")


def test_no_two_texts_are_encoded_at_once(model: Path, tmp_path: Path) -> None:
    service = Service(spec(tmp_path, model), "small")
    busy, threads = threading.Lock(), []

    def encode(text: str) -> list[int]:
        assert busy.acquire(blocking=False), "two at once"
        threads.append(threading.current_thread() is threading.main_thread())
        time.sleep(0.05)
        busy.release()
        return [len(text)]

    async def all_of(*texts: str) -> list[list[int]]:
        return await asyncio.gather(*(service.encode_beside(encode, text) for text in texts))

    long = "x" * SHORT
    assert asyncio.run(all_of("a", long, "bc")) == [[1], [SHORT], [2]]
    assert threads == [True, False, False], "short ones in the loop, but not beside a long one"

    async def cancelled() -> list[list[int]]:
        left = asyncio.ensure_future(service.encode_beside(encode, long))
        await asyncio.sleep(0.01)
        left.cancel()
        return await all_of("a")

    assert asyncio.run(cancelled()) == [[1]]
