"""A model that easyllm trained and exported, in vLLM: through `+engine=vllm`, and by itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import PATIENCE, wait_for

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROMPTS = {
    "short": "A class",
    "line": "The statement that is executed once for each item of a sequence",
    "long": "An object is a thing that has an identity, a type and a value. " * 4,
}


def easyllm(folder: Path, *words: str) -> None:
    command = [sys.executable, "-m", "easyllm", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a Baichuan-13B of five heads was exported to ``run/export``."""
    folder = tmp_path_factory.mktemp("export")
    easyllm(
        folder, "+recipe=baichuan13b_pipe", "+smoke=cpu", "smoke.hidden_size=160", "smoke.heads=5",
        "smoke.steps=1", "smoke.max_degree=1", "model.overrides.initializer_range=0.3",
        "model.overrides.norm_head=true", "stages=[tokenize,train,export]", "run_dir=run",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, str]:
    return answers(folder, "transformers")


def answers(folder: Path, engine: str, *words: str) -> dict[str, str]:
    """What ``stages=[infer]`` writes, by the prompt's name."""
    asked = ",".join(f"{name}: '{text}'" for name, text in PROMPTS.items())
    easyllm(
        folder, "stages=[infer]", "inference.model=run/export", f"+engine={engine}",
        f"inference.prompts={{{asked}}}", "model.dtype=float32", f"run_dir={engine}",
        "inference.sampling.temperature=0", "inference.sampling.max_tokens=20", *words,
    )  # fmt: skip
    lines = (folder / engine / "inference/results.jsonl").read_text("utf-8").splitlines()
    return {result["id"]: result["text"] for result in map(json.loads, lines)}


def test_both_engines_write_the_same(folder: Path, expected: dict[str, str]) -> None:
    """In processes that vLLM starts and that find the plugin by themselves."""
    config = json.loads((folder / "run/export/config.json").read_text("utf-8"))
    assert config["architectures"] == ["BaichuanForCausalLM"]
    assert config["alibi"] and config["norm_head"] and config["num_attention_heads"] == 5
    fields = ("max_model_len=256", "enforce_eager=true")
    made = answers(folder, "vllm", *(f"inference.engine.{field}" for field in fields))
    assert made == expected
    assert len(set(made.values())) == len(PROMPTS)


@pytest.fixture
def served(folder: Path) -> Iterator[httpx.Client]:
    """vLLM's server of the export, which knows of easyllm by its entry point alone. The command
    `vllm serve` is the same, and in the CPU build asks for a package by another name."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command: list[Any] = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", folder / "run/export", "--served-model-name", "exported",
        "--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "4", "--enforce-eager",
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with (folder / "serve.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
        )
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE)

    def ready() -> bool:
        assert server.poll() is None, (folder / "serve.log").read_text()[-4000:]
        try:
            return client.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_for(ready)
        yield client
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def test_vllms_own_server_serves_an_export(served: httpx.Client, expected: dict[str, str]) -> None:
    asked = {"model": "exported", "prompt": [*PROMPTS.values()], "max_tokens": 20, "temperature": 0}
    response = served.post("/v1/completions", json=asked)
    assert response.status_code == 200, response.text
    assert [choice["text"] for choice in response.json()["choices"]] == [*expected.values()]
