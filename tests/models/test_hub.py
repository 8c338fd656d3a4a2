"""A model is fetched from a hub before ranks are started, from a small hub of our own."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from easyllm.models import source, tensor_files
from easyllm.stages import load
from tests.inference.small import save_model
from tests.support import run_spec

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files that a hub with the model ``some/model`` was asked for."""
    folder, found = save_model(tmp_path / "there"), []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/api/models/some/model"):
                files = [
                    {"type": "file", "oid": "0" * 40, "size": file.stat().st_size,
                     "path": file.name, "rfilename": file.name}
                    for file in folder.iterdir()
                ]  # fmt: skip
                known: Any = {"id": "some/model", "sha": COMMIT, "siblings": files}
                if "/tree/" in self.path:
                    known = files
                return self.answer(json.dumps(known).encode(), {})
            file = folder / self.path.rpartition("/")[2].partition("?")[0]
            if not file.is_file():
                return self.send_error(404)
            if self.command == "GET":
                found.append(file.name)
            content = file.read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            return self.answer(content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

        do_HEAD = do_GET

        def answer(self, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        yield found
        server.shutdown()


@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_training_has_its_model_before_its_ranks(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: str
) -> None:
    run = run_spec(tmp_path, {"model": {"path": "some/model", "init": init}})
    load("train").prepare(run)
    weights = init == "pretrained"
    assert "config.json" in asked and ("model.safetensors" in asked) == weights
    # the ranks find it without the hub
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = source.folder("some/model", tmp_path, with_weights=weights)
    assert (found.name, bool(tensor_files.paths(found))) == (COMMIT, weights)
