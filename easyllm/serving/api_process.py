"""The API in a separate process, for engines that it would otherwise delay.

The process with the model controls it by ``ApiProcess``; ``main`` runs in it. A wire connects the
two: the spec comes first, then requests one way and steps of answers the other way.
"""

from __future__ import annotations

import asyncio
import gc
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from easyllm.inference.ipc import Wire, packed, received
from easyllm.inference.remote_engine import EngineServer, RemoteEngine
from easyllm.runfile import read_config
from easyllm.serving.server import POLL, Server, made
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import write

PATIENCE = 10.0
"""Seconds that the process may take to end when its wire is closed."""


class Stopped(BaseException):
    """A stop while the model is loading. No library's ``except Exception`` catches it."""


class ApiProcess:
    """The process that answers clients; to be used as a context manager, within which SIGTERM
    and SIGINT stop it."""

    def __init__(self, run: RunSpec, listener: socket.socket):
        ours, theirs = socket.socketpair()
        given = (theirs.fileno(), listener.fileno())
        command = [sys.executable, "-m", "easyllm.serving.api_process", *map(str, given)]
        # in a separate session, where a terminal's Ctrl-C does not reach it
        self._process = subprocess.Popen(command, pass_fds=given, start_new_session=True)
        theirs.close()
        listener.close()
        self._wire = Wire(ours)
        self._wire.send(write(run))
        self._asked = 0
        self._loading = True

    def serve(self, engine: Any) -> dict[str, Any]:
        """Have it answer with ``engine`` until it is stopped; returns what it has done."""
        self._loading = False
        gc.freeze()  # the model's objects stay, so the collector need not scan them
        host = EngineServer(engine, self._wire)
        listening = threading.Thread(target=host.listen, name="front", daemon=True)
        listening.start()
        # the tokenizer itself: transformers' AutoTokenizer would load torch, 0.3 GB; pickled
        # separately: unpickling it imports for a while, which the loop leaves to a thread
        host.tell("ready", (pickle.dumps(engine.tokenizer), engine.max_positions))
        answered, failed = 0, False
        while self._process.poll() is None:
            if answered < self._asked:
                host.tell("stop")
                answered += 1
            if engine.failed and not failed:
                host.tell("failed")
                failed = True
            time.sleep(POLL)
        listening.join()
        return self._done(host.messages)

    def stopped(self) -> dict[str, Any]:
        """Have it stop before it has an engine; returns what it has done."""
        messages, self._loading = {}, False
        with suppress(EOFError, OSError):
            self._wire.send(("stop", None))
            messages = dict([self._wire.receive()])  # without an engine it asks nothing
        return self._done(messages)

    def _done(self, messages: dict[str, Any]) -> dict[str, Any]:
        """What the process sent at its end. Raises RuntimeError where it ended otherwise."""
        if self._process.wait() or "over" not in messages:
            raise RuntimeError(f"the API's process ended with status {self._process.returncode}")
        done: dict[str, Any] = messages["over"]
        return done

    def _signalled(self, sig: int, frame: Any) -> None:
        self._asked += 1
        if self._loading:
            raise Stopped

    def __enter__(self) -> ApiProcess:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._signalled)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._wire.close()  # the process ends when its wire is closed
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main(wire_number: int, listener_number: int) -> None:
    """Answer clients at one socket, with the engine at the other; both are open already."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the process with the engine says when to stop
    wire, listener = (socket.socket(fileno=n) for n in (wire_number, listener_number))
    run, _ = read_config(Wire(wire).receive())
    server = made(run, signals=False)
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(_answer(server, listener, wire))


async def _answer(server: Server, listener: socket.socket, wire: socket.socket) -> None:
    """Answer clients until asked to stop, or until the wire is closed."""
    reader, writer = await asyncio.open_unix_connection(sock=wire)
    asking = _Asking(server, writer)
    hearing = asyncio.create_task(asking.hear(reader))
    await server.serve(sockets=[listener])
    hearing.cancel()
    with suppress(asyncio.CancelledError):
        await hearing
    if asking.loading is not None:
        await asking.loading  # raises the error that kept it from being ready
    asking.tell(("over", server.service.done()))
    writer.close()
    with suppress(OSError):  # the process with the engine may be gone
        await writer.wait_closed()


class _Asking:
    """The API's end of the wire."""

    def __init__(self, server: Server, writer: asyncio.StreamWriter):
        self.loading: asyncio.Task[None] | None = None
        self._server, self._writer = server, writer
        self._engine: RemoteEngine | None = None
        self._failed = False

    def tell(self, message: Any) -> None:
        if not self._writer.is_closing():
            self._writer.write(packed(message))

    async def hear(self, reader: asyncio.StreamReader) -> None:
        try:
            async for kind, what in received(reader):
                if kind == "ready":
                    self.loading = asyncio.create_task(self._ready(*what))
                elif kind == "stop":
                    self._server.stop()
                elif kind == "failed":
                    self._fail()
                elif self._engine is not None:
                    if kind == "scored":
                        self._engine.take_score(*what)
                    else:
                        self._engine.take(what)
        finally:  # the wire is closed
            self._fail()
            self._server.should_exit = True

    def _fail(self) -> None:
        self._failed = True
        if self._engine is not None:
            self._engine.fail()

    async def _ready(self, tokenizer: bytes, max_positions: int) -> None:
        try:
            loaded = await asyncio.to_thread(pickle.loads, tokenizer)
        except BaseException:
            self._server.should_exit = True
            raise
        self._engine = RemoteEngine(self.tell, loaded, max_positions)
        if self._failed:
            self._engine.fail()
        self._server.loaded(self._engine)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
