"""Messages arrive whole, whatever their length and whoever waits."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import uvloop

from easyllm.inference.ipc import Wire, packed, received
from tests.support import PATIENCE

LONG = bytes(range(256)) * 40_000
"""Longer than any socket's buffer."""
MESSAGES: list[Any] = [("first", None), LONG, *range(1000), {"last": LONG}]


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    for end in (ours, theirs):
        end.close()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner


def test_from_a_thread_to_a_loop_that_takes_the_socket_over(ends, runner) -> None:
    wire = Wire(ends[0])

    def send() -> None:
        for message in MESSAGES:
            wire.send(message)
        wire.close()

    async def hear() -> list[Any]:
        reader, writer = await asyncio.open_unix_connection(sock=ends[1])
        heard = [message async for message in received(reader)]
        writer.close()
        return heard

    sending = threading.Thread(target=send)
    sending.start()
    first = Wire(ends[1]).receive()
    assert [first, *runner.run(hear())] == MESSAGES
    sending.join(PATIENCE)


def test_from_a_loop_that_waits_for_nobody(ends, runner) -> None:
    """The thread reads only when the loop has written all."""
    written, heard = threading.Event(), []

    def hear() -> None:
        written.wait(PATIENCE)
        wire = Wire(ends[0])
        with suppress(EOFError):
            while True:
                heard.append(wire.receive())

    async def send() -> None:
        _, writer = await asyncio.open_unix_connection(sock=ends[1])
        for message in MESSAGES:
            writer.write(packed(message))
        written.set()
        writer.close()
        await writer.wait_closed()

    hearing = threading.Thread(target=hear)
    hearing.start()
    runner.run(send())
    hearing.join(PATIENCE)
    assert heard == MESSAGES


def test_a_message_cut_off_is_none(ends, runner) -> None:
    ends[0].sendall(packed(LONG[:1000])[:-1])
    ends[0].close()

    async def hear() -> list[Any]:
        reader, writer = await asyncio.open_unix_connection(sock=ends[1])
        heard = [message async for message in received(reader)]
        writer.close()
        return heard

    assert runner.run(hear()) == []


def test_closing_wakes_the_one_who_waits_here(ends) -> None:
    wire = Wire(ends[0])
    raised = []

    def hear() -> None:
        try:
            wire.receive()
        except (EOFError, OSError) as error:
            raised.append(error)

    hearing = threading.Thread(target=hear, daemon=True)
    hearing.start()
    wire.close()
    hearing.join(PATIENCE)
    assert len(raised) == 1
    with pytest.raises(EOFError):
        Wire(ends[1]).receive()
    with pytest.raises(OSError):
        wire.send("nobody")
