"""The API in a process of its own, where the engine would be kept waiting by it.

``Front`` is that process as the server sees it, which has the model; ``main`` runs in it. Between
them is a pipe: the spec first, then questions one way and what answers grow by the other.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from easyllm.inference.apart import Host, RemoteEngine
from easyllm.runfile import read_config
from easyllm.serving.server import POLL, Server, log_to, made, welcome
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

    def serve(self, engine: Any, folder: Path) -> dict[str, Any]:
        """Have it answer with ``engine``, whose model is in ``folder``, until it is stopped;
        returns what it has done."""
        gc.freeze()  # the model's objects stay, and need not be looked through for garbage
        host = Host(engine, self._pipe)
        listening = threading.Thread(target=host.listen, name="front", daemon=True)
        listening.start()
        host.tell("ready", (folder, engine.max_positions))
        self._loading = failed = False
        told = 0
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
        told = {}
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
    log_to(sys.stdout)
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(_answer(server, listener, pipe))
    with suppress(OSError):  # the process with the engine may be gone
        pipe.send(("over", server.service.done()))


async def _answer(server: Server, listener: socket.socket, pipe: Connection) -> None:
    loop, service = asyncio.get_running_loop(), server.service
    engine: RemoteEngine | None = None
    tasks = []

    async def ready(folder: Path, remote: RemoteEngine) -> None:
        await asyncio.to_thread(remote.load_tokenizer, folder)
        gc.freeze()
        service.engine = remote
        if not service.draining:
            print(welcome(service.run.serving, service.model), flush=True)

    def heard() -> None:
        nonlocal engine
        try:
            kind, what = pipe.recv()
        except (EOFError, OSError):
            loop.remove_reader(pipe.fileno())
            kind, what = "failed", None
            server.should_exit = True
        if kind == "ready":
            folder, max_positions = what
            engine = RemoteEngine(pipe, max_positions)
            tasks.append(loop.create_task(ready(folder, engine)))
        elif kind == "stop":
            server.stop()
        elif engine is not None and kind == "grown":
            engine.take(what)
        elif engine is not None and kind == "failed":
            engine.fail()

    loop.add_reader(pipe.fileno(), heard)
    await server.serve(sockets=[listener])
    loop.remove_reader(pipe.fileno())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
