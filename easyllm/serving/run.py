"""Serves a run: the engine, and the API in the same process or in a separate one."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

from easyllm.inference.prompts import model_folder
from easyllm.serving.api_process import ApiProcess, Stopped
from easyllm.serving.http.address import bound
from easyllm.serving.http.auth import exposed, load_keys
from easyllm.serving.server import Server, made
from easyllm.spec.run import RunSpec


def serve(run: RunSpec) -> dict[str, Any]:
    """Answer requests at ``serving.host`` and ``serving.port`` until SIGTERM or Ctrl-C.

    The server listens while the model is loading; ``/ready`` shows when it is loaded.
    """
    with bound(run.serving) as listener:
        load_keys(run.serving)  # errors in them are reported before anything is loaded
        if warning := exposed(run.serving):
            print(warning, file=sys.stderr, flush=True)
        return (
            _in_two_processes if run.inference.engine.separate_api_process else _in_one_process
        )(run, listener)


def _in_two_processes(run: RunSpec, listener: socket.socket) -> dict[str, Any]:
    """The engine in this process, the API in another."""
    with ApiProcess(run, listener) as front:
        engine = None
        try:
            engine = run.inference.engine.load(model_folder(run), run)
            return front.serve(engine)
        except Stopped:
            return front.stopped()
        finally:
            if engine is not None:
                engine.close()


def _in_one_process(run: RunSpec, listener: socket.socket) -> dict[str, Any]:
    """The API and the engine, which has its own processes, in one event loop."""
    server = made(run)
    try:
        # uvloop where it is installed
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(_serve(run, server, listener))
    finally:
        if server.service.engine is not None:
            server.service.engine.close()
    return server.service.done()


async def _serve(run: RunSpec, server: Server, listener: socket.socket) -> None:
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        server.loaded(
            await asyncio.to_thread(lambda: run.inference.engine.load(model_folder(run), run))
        )
    except BaseException:
        server.should_exit = True
        await serving
        raise
    await serving
