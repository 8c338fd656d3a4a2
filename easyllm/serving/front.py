"""The API in a process of its own, where the engine would be kept waiting by it.

``Front`` is that process as the server sees it, which has the model; ``main`` runs in it. Between
them is a pipe: the spec first, then questions one way and what answers grow by the other.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from easyllm.inference.apart import Host, RemoteEngine
from easyllm.runfile import read_config
from easyllm.serving.server import POLL, Server, made
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import write

PATIENCE = 10.0
"""Seconds that it may take to end when it is left alone."""


class Stopped(BaseException):
    """Asked to stop while the model was loading. No library's ``except Exception`` takes it."""


class Front:
    """The process that answers clients; to be used as a context manager, within which SIGTERM
    and SIGINT stop it."""

    def __init__(self, run: RunSpec, listener: socket.socket):
        self._pipe, theirs = multiprocessing.Pipe()
        given = (theirs.fileno(), listener.fileno())
        command = [sys.executable, "-m", "easyllm.serving.front", *map(str, given)]
        # in a session of its own, where a terminal's Ctrl-C does not reach it
        self._process = subprocess.Popen(command, pass_fds=given, start_new_session=True)
        theirs.close()
        listener.close()
        self._pipe.send(write(run))
        self._asked = 0
        self._loading = True

    def serve(self, engine: Any) -> dict[str, Any]:
        """Have it answer with ``engine`` until it is stopped; returns what it has done."""
        self._loading = False
        gc.freeze()  # the model's objects stay, and need not be looked through for garbage
        host = Host(engine, self._pipe)
        listening = threading.Thread(target=host.listen, name="front", daemon=True)
        listening.start()
        # the tokenizer as it is: transformers' AutoTokenizer loads torch, 0.3 GB
        host.tell("ready", (pickle.dumps(engine.tokenizer), engine.max_positions))
        told, failed = 0, False
        while self._process.poll() is None:
            if told < self._asked:
                host.tell("stop")
                told += 1
            if engine.failed and not failed:
                host.tell("failed")
                failed = True
            time.sleep(POLL)
        listening.join()
        return self._done(host.told)

    def stopped(self) -> dict[str, Any]:
        """Have it stop before it has an engine; returns what it has done."""
        told, self._loading = {}, False
        with suppress(EOFError, OSError):
            self._pipe.send(("stop", None))
            told = dict([self._pipe.recv()])  # without an engine it asks nothing
        return self._done(told)

    def _done(self, told: dict[str, Any]) -> dict[str, Any]:
        """What the process told at its end. Raises RuntimeError where it came to another."""
        if self._process.wait() or "over" not in told:
            raise RuntimeError(f"the API's process ended with status {self._process.returncode}")
        done: dict[str, Any] = told["over"]
        return done

    def _signalled(self, sig: int, frame: Any) -> None:
        self._asked += 1
        if self._loading:
            raise Stopped

    def __enter__(self) -> Front:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._signalled)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._pipe.close()  # it ends when there is nobody left to ask
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main(pipe_number: int, listener_number: int) -> None:
    """Answer clients at a socket, asking the engine behind a pipe; both are open already."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the process with the engine tells when to stop
    pipe, listener = Connection(pipe_number), socket.socket(fileno=listener_number)
    run, _ = read_config(pipe.recv())
    server = made(run, signals=False)
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(_Asking(server, pipe).answer(listener))
    with suppress(OSError):  # the process with the engine may be gone
        pipe.send(("over", server.service.done()))


class _Asking:
    """The API and its end of the pipe, in one event loop."""

    def __init__(self, server: Server, pipe: Connection):
        self._server, self._pipe = server, pipe
        self._engine: RemoteEngine | None = None
        self._failed = False
        self._loading: asyncio.Task[None] | None = None

    async def answer(self, listener: socket.socket) -> None:
        """Answer clients until asked to stop, or there is nobody left to ask."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pipe.fileno(), self._heard)
        await self._server.serve(sockets=[listener])
        loop.remove_reader(self._pipe.fileno())
        if self._loading is not None:
            await self._loading  # raises what kept it from being ready

    def _heard(self) -> None:
        try:
            kind, what = self._pipe.recv()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            kind, what = "failed", None
            self._server.should_exit = True
        if kind == "ready":
            self._loading = asyncio.ensure_future(self._ready(*what))
        elif kind == "stop":
            self._server.stop()
        elif kind == "failed":
            self._failed = True
            if self._engine is not None:
                self._engine.fail()
        elif self._engine is not None:
            self._engine.take(what)

    async def _ready(self, tokenizer: bytes, max_positions: int) -> None:
        try:
            loaded = await asyncio.to_thread(pickle.loads, tokenizer)
        except BaseException:
            self._server.should_exit = True
            raise
        self._engine = RemoteEngine(self._pipe, loaded, max_positions)
        if self._failed:
            self._engine.fail()
        self._server.loaded(self._engine)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
