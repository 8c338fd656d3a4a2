"""The API server of a run: its socket, its signals, its end."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from easyllm.inference.engine_protocol import Engine
from easyllm.inference.prompts import model_name
from easyllm.serving.app import Application
from easyllm.serving.http.auth import load_keys
from easyllm.serving.http.middleware import ACCESS
from easyllm.serving.http.protocol import limited
from easyllm.serving.service import Service
from easyllm.spec.inference import ServingSpec
from easyllm.spec.run import RunSpec

POLL = 0.05
"""Seconds between checks of what is under way, once the server is asked to stop."""


def made(run: RunSpec, signals: bool = True) -> Server:
    """The server of a run, without an engine yet; its access log is the standard output."""
    _log_to(sys.stdout)
    service = Service(run, run.serving.model_name or model_name(run))
    return Server(Application(service, load_keys(run.serving)), service, signals)


def _log_to(stream: Any) -> None:
    """Write access log entries as they are, a JSON object a line."""
    ACCESS.setLevel(logging.INFO)
    ACCESS.propagate = False
    ACCESS.handlers = [logging.StreamHandler(stream)]


class Server(uvicorn.Server):
    """Serves until it is asked to stop, then lets what is under way end.

    SIGTERM or SIGINT: ``/ready`` turns false and new requests get 503; once nothing is under
    way, or ``serving.grace_seconds`` have passed, or at a second signal, it stops. Without
    ``signals`` the caller calls ``stop``.
    """

    def __init__(self, application: Application, service: Service, signals: bool = True):
        config = uvicorn.Config(
            application.asgi,
            http=limited(service.run.serving),
            ws="none",  # else a request for a WebSocket would bypass the guard
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self.application, self.service, self.signals = application, service, signals

    def loaded(self, engine: Engine) -> None:
        """Start to answer with ``engine``."""
        self.service.engine = engine
        gc.freeze()  # the engine's objects stay, so the collector need not scan them
        if not self.service.draining:
            print(_welcome(self.service.run.serving, self.service.model), flush=True)

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Begin to stop; stop at once when called again."""
        if self.service.draining:
            self.should_exit = True
        self.service.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second: whether to stop serving."""
        if self.service.draining and not self.should_exit:
            await self._drained()
            self.should_exit = True
        stop: bool = await super().on_tick(counter)
        return stop

    async def _drained(self) -> None:
        deadline = time.monotonic() + self.service.run.serving.grace_seconds
        while self.application.middleware.under_way and not self.should_exit:
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(POLL)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike the base it does not raise the signals again afterwards: a server that was
        stopped has done its work."""
        if not self.signals or threading.current_thread() is not threading.main_thread():
            yield
            return
        caught = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self.handle_exit) for number in caught]
        try:
            yield
        finally:
            for number, handler in zip(caught, before, strict=True):
                signal.signal(number, handler)


def _welcome(serving: ServingSpec, model: str) -> str:
    host = "localhost" if serving.host in ("0.0.0.0", "::", "127.0.0.1") else serving.host
    url = f"http://{host}:{serving.port}"
    return (
        f"serving {model}\n"
        f"  chat page and OpenAI's API: {url}/ and {url}/v1\n"
        f"  curl {url}/generate -H 'Content-Type: application/json' "
        '-d \'{"messages": [{"user": "San Francisco is a"}], "sampling": {"max_tokens": 32}}\'\n'
        "  Ctrl-C stops the server"
    )
