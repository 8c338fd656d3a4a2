"""A server in a thread of this process, and a client of it."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import openai

from easyllm.serving.app import Application
from easyllm.serving.http.auth import Keys
from easyllm.serving.server import Server
from easyllm.serving.service import Service
from easyllm.spec.run import RunSpec
from tests.support import PATIENCE, merged, run_spec, wait_for

LONG = 3000
"""Tokens that take the small model several seconds."""
BASE = {
    "model": {"dtype": "float32"},
    "inference": {"batch_size": 8, "sampling": {"max_tokens": 8}},
    "serving": {"model_name": "small"},
}


def spec(folder: Path, model: Path, **config: Any) -> RunSpec:
    return run_spec(folder, merged(merged(BASE, {"inference": {"model": str(model)}}), config))


class Served:
    """``engine`` is one that is loaded already; the model of ``run`` is loaded otherwise."""

    def __init__(self, run: RunSpec, engine: Any = None, keys: tuple[str, ...] = ()):
        self.run = run
        self.own = engine is None
        assert run.inference.model is not None
        self.engine = engine or run.inference.engine.load(Path(run.inference.model), run)
        self.service = Service(run, run.serving.model_name or "small")
        self.service.engine = self.engine
        self.server = Server(Application(self.service, Keys(keys)), self.service)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE, headers=headers)
        self.openai = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=(keys or ("none",))[0], max_retries=0
        )
        serving = self.server.serve(sockets=[self.listener])
        self.thread = threading.Thread(target=asyncio.run, args=[serving], daemon=True)
        self.thread.start()
        wait_for(lambda: self.server.started)

    def generate(self, *messages: Any, **body: Any) -> httpx.Response:
        turns = [m if isinstance(m, dict) else {"user": m} for m in messages or ("hello",)]
        return self.client.post("/generate", json={"messages": turns, **body})

    def text(self, *messages: Any, **sampling: Any) -> str:
        response = self.generate(*messages, sampling=sampling)
        assert response.status_code == 200, response.text
        (text,) = response.json()["text"]
        return text

    def error(self, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
        """Status and error object of a POST that is refused."""
        response = self.client.post(path, json=body)
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return response.status_code, error

    def metric(self, name: str, **labels: str) -> float:
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0

    def idle(self) -> bool:
        return self.service.active == 0 and self.server.application.middleware.under_way == 0

    def close(self) -> None:
        self.client.close()
        self.openai.close()
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        if self.own:
            self.engine.close()
