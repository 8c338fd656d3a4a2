"""The middleware before all routes: hosts, keys, sizes, times, headers, the access log."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from easyllm.serving.errors import Refused
from easyllm.serving.http.auth import Keys
from easyllm.serving.http.hosts import Hosts
from easyllm.serving.service import Note, Service
from easyllm.serving.streaming import CLIENT_LEFT

OPEN = frozenset({"/health", "/ready"})
"""Routes that need no key, besides the page's files: they reveal nothing, and the page is
where a key is entered."""
QUIET = frozenset({"/health", "/ready", "/metrics"})
"""Routes that machines poll, which the access log leaves out."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
ACCESS = logging.getLogger("easyllm.access")


class Middleware:
    """ASGI middleware around the application; the ``Note`` it makes of each request is in
    the scope, at ``easyllm.note``. The application sees HEAD as GET, and no path that ends in a
    slash."""

    def __init__(self, app: ASGIApp, service: Service, keys: Keys, files: frozenset[str],
                 routes: Callable[[str], str]):  # fmt: skip
        self.app, self.service, self.keys = app, service, keys
        self.hosts = Hosts(service.run.serving, bool(keys))
        self.open = OPEN | files
        self.routes = routes
        self.under_way = 0
        """Requests whose response is not yet sent completely."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path: str = scope["path"].rstrip("/") or "/"
        note = Note(uuid.uuid4().hex[:16], self.routes(path))
        # HEAD is answered like GET, and the server leaves the body out
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        asked = {**scope, "path": path, "method": method, "easyllm.note": note}
        status = 0

        async def say(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = {**HEADERS, "X-Request-Id": note.id}
                lines = [(name.lower().encode(), value.encode()) for name, value in extra.items()]
                message = {**message, "headers": [*message["headers"], *lines]}
            await send(message)

        self.under_way += path not in self.open
        try:
            try:
                self._check(scope, path)
                body = await self._body(scope, receive)
            except Refused as error:
                await _refuse(error, say)
            else:
                if body is not None:
                    await self.app(asked, _replay(body, receive), say)
        finally:
            self.under_way -= path not in self.open
            self._log(scope, path, note, status or CLIENT_LEFT)

    def _check(self, scope: Scope, path: str) -> None:
        self.hosts.check(scope["headers"])
        headers = dict(scope["headers"])
        if path not in self.open and not self.keys.accept(_key(headers)):
            message = "a valid API key is needed: Authorization: Bearer <key>"
            headers_ = {"WWW-Authenticate": "Bearer"}
            raise Refused(401, message, code="invalid_api_key", headers=headers_)
        if scope["method"] == "POST":
            kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
            # a browser lets pages of other sites send other types to this machine without asking
            if kind != b"application/json":
                raise Refused(415, "give the header Content-Type: application/json")

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The request's body; None where the client left before its end. Raises Refused."""
        serving = self.service.run.serving
        limit = int(serving.max_body_mb * 1e6)
        too_large = Refused(413, f"the body is larger than {limit:,} bytes (serving.max_body_mb)")
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length) > limit:
            raise too_large
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(serving.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise too_large
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise Refused(
                408, f"the body did not come within {serving.body_seconds:g} seconds",
                headers={"Connection": "close"},
            ) from None  # fmt: skip

    def _log(self, scope: Scope, path: str, note: Note, status: int) -> None:
        seconds = time.perf_counter() - note.begun
        self.service.metrics.requests.labels(note.route, status).inc()
        self.service.metrics.request_seconds.labels(note.route).observe(seconds)
        if path in QUIET:
            return
        entry: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": note.id,
            "client": (scope.get("client") or ("",))[0],
            "method": scope["method"],
            "route": note.route,
            "status": status,
            "seconds": round(seconds, 4),
        }
        if note.prompt_tokens:
            entry |= {
                "prompt_tokens": note.prompt_tokens,
                "completion_tokens": note.completion_tokens,
                "first_token_seconds": note.first_token_seconds
                and round(note.first_token_seconds, 4),
            }
        if note.prompt is not None:
            entry |= {"prompt": note.prompt, "answers": note.answers}
        ACCESS.info(json.dumps(entry, ensure_ascii=False))


def _key(headers: dict[bytes, bytes]) -> str | None:
    kind, _, key = headers.get(b"authorization", b"").partition(b" ")
    return key.strip().decode("utf-8", "surrogateescape") if kind.lower() == b"bearer" else None


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the whole body first."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _refuse(error: Refused, send: Send) -> None:
    headers = {"content-type": "application/json", **error.headers}
    lines = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": lines})
    await send({"type": "http.response.body", "body": json.dumps(error.body).encode()})
