"""A hub of our own on this machine, which the real huggingface_hub talks to over HTTP."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAME = "some/model"
ASKED = re.compile(
    rf"/api/models/{NAME}(?:/(?P<kind>revision|tree)/(?P<revision>[^/?]+))?(?:\?.*)?"
)
FILE = re.compile(rf"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<file>[^?]+)")


class Hub:
    """One model, ``some/model``, with a folder for each commit."""

    def __init__(self, commits: dict[str, Path], main: str, cache: Path):
        self.commits, self.main, self.cache = commits, main, cache
        self.tags: dict[str, str] = {}
        self.requests: list[str] = []
        """Paths that were asked for."""
        self.sent: list[str] = []
        """Names of the files that were sent."""

    def commit(self, revision: str | None) -> str | None:
        """The commit of a branch, tag or commit; None where there is none."""
        found = {"main": self.main, **self.tags}.get(revision or "main", revision)
        return found if found in self.commits else None

    @contextlib.contextmanager
    def running(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
        """Serve; this process and those that it starts ask here."""
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self)) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            endpoint = f"http://127.0.0.1:{server.server_port}"
            url = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
            constants = "huggingface_hub.constants"
            monkeypatch.setattr(f"{constants}.ENDPOINT", endpoint)
            monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", url)
            monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
            monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(self.cache))
            monkeypatch.setenv("HF_ENDPOINT", endpoint)
            monkeypatch.setenv("HF_HUB_CACHE", str(self.cache))
            monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
            yield self
            server.shutdown()


def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on nobody is asked: what the cache has must do."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def _handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.requests.append(self.path)
            if asked := ASKED.fullmatch(self.path):
                return self.described(asked["revision"], asked["kind"] == "tree")
            if wanted := FILE.match(self.path):
                return self.file(wanted["revision"], wanted["file"])
            return self.refused("RepoNotFound")

        do_HEAD = do_GET

        def described(self, revision: str | None, tree: bool) -> None:
            commit = hub.commit(revision)
            if commit is None:
                return self.refused("RevisionNotFound")
            files = [
                {"type": "file", "oid": _hash(file)[:40], "size": file.stat().st_size,
                 "path": file.name, "rfilename": file.name}
                for file in hub.commits[commit].iterdir()
            ]  # fmt: skip
            known: Any = files if tree else {"id": NAME, "sha": commit, "siblings": files}
            return self.answer(json.dumps(known).encode(), {})

        def file(self, revision: str, name: str) -> None:
            commit = hub.commit(revision)
            if commit is None:
                return self.refused("RevisionNotFound")
            file = hub.commits[commit] / name
            if not file.is_file():
                return self.refused("EntryNotFound")
            if self.command == "GET":
                hub.sent.append(name)
            headers = {"ETag": f'"{_hash(file)}"', "X-Repo-Commit": commit}
            return self.answer(file.read_bytes(), headers)

        def refused(self, code: str) -> None:
            self.answer(b"", {"X-Error-Code": code}, 404)

        def answer(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
