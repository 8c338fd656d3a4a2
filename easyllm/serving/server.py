"""The API server of a run."""

from __future__ import annotations

import errno
import functools
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from easyllm.errors import UserError
from easyllm.inference.prompts import encode_messages, model_folder
from easyllm.serving.app import Service, application
from easyllm.spec.run import RunSpec, ServingSpec

PATIENCE = 3
"""Seconds that open requests get once the server is asked to stop."""


def serve(run: RunSpec) -> dict[str, Any]:
    """Answer requests at ``serving.host`` and ``serving.port`` until SIGTERM or Ctrl-C."""
    with _bound(run.serving) as listener:  # before the model is loaded, which takes a while
        folder = model_folder(run)
        generator = run.inference.engine.load(folder, run)
        encode = functools.partial(encode_messages, run, generator.tokenizer)
        inference = run.inference
        service = Service(generator, encode, inference.sampling, run.seed, inference.batch_size)
        config = uvicorn.Config(
            application(service, str(folder)),
            log_level="warning",
            timeout_graceful_shutdown=PATIENCE,
        )
        print(_welcome(run.serving, str(folder)), flush=True)
        try:
            _Server(config).run(sockets=[listener])
        finally:
            service.close()
    return {"requests": service.requests, "generated_tokens": service.tokens}


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGINT and SIGTERM. Unlike the base it does not raise them again
        afterwards: a server that was stopped has done its work."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        caught = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self.handle_exit) for number in caught]
        try:
            yield
        finally:
            for number, handler in zip(caught, before, strict=True):
                signal.signal(number, handler)


def _bound(serving: ServingSpec) -> socket.socket:
    """A socket on the address to serve at, not listening yet."""
    host, port = serving.host, serving.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror:
        raise UserError(
            f"serving.host={host}: no such host; give 127.0.0.1 for this machine only, "
            "0.0.0.0 for all that reach it"
        ) from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"serving.port={port}: is in use on {host}; give another one, "
                f"e.g. serving.port={port + 1 if port < 65535 else port - 1}"
            ) from None
        if error.errno == errno.EACCES:
            raise UserError(
                f"serving.port={port}: this user may not open it; give one above 1023"
            ) from None
        raise UserError(
            f"serving.host={host}: cannot be served at: {error.strerror}; give an address "
            "of this machine"
        ) from None
    return listener


def _welcome(serving: ServingSpec, model: str) -> str:
    host = "localhost" if serving.host in ("0.0.0.0", "::", "127.0.0.1") else serving.host
    url = f"http://{host}:{serving.port}/generate"
    return (
        f"serving {model}\n"
        f"  curl {url} -H 'Content-Type: application/json' "
        '-d \'{"messages": [{"user": "San Francisco is a"}], "sampling": {"max_tokens": 32}}\'\n'
        "  Ctrl-C stops the server"
    )
