"""Limits on a connection that hold before a request's headers are complete, in size and time.

The protocol of uvicorn 0.54 waits for headers without a limit, and keeps all that comes; the
application, and so the check of the key, comes only after them.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from easyllm.serving.errors import error_body
from easyllm.spec.inference import ServingSpec

LINGER = 1.0
"""Seconds in which data that a refused client still sends is dropped. A connection closed at once
would be reset, and the refusal lost."""
CHUNK = 8
"""Most bytes around each byte of a body, where it comes in chunks of one byte."""


def limited(serving: ServingSpec) -> type[HttpToolsProtocol]:
    """uvicorn's protocol with the limits of a spec."""
    limits = {
        "max_header_bytes": int(serving.max_header_kb * 1000),
        "header_seconds": serving.header_seconds,
        # after the guard, which has an answer for a client that is too slow
        "body_seconds": serving.body_seconds + 1,
    }
    return type("LimitedProtocol", (_Limited,), limits)


class _Limited(HttpToolsProtocol):
    max_header_bytes: int
    header_seconds: float
    body_seconds: float

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        self._in_headers = True
        """Whether the next request's headers are awaited or incomplete."""
        self._beside_body = 0
        """Bytes of this request that are not its body: headers, trailers, what frames chunks."""
        self._refused = False
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._within(self.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._done()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        if self._in_headers:
            if self._deadline is None:
                self._within(self.header_seconds)
            room = max(self.max_header_bytes - self._beside_body, 0)
            self._feed(data[:room])
            data = data[room:]
            if data and self._in_headers and not self._refused:
                limit = f"the headers are larger than {self.max_header_bytes:,} bytes"
                self._refuse(431, f"{limit} (serving.max_header_kb)")
                return
        self._feed(data)
        if self._beside_body > self.max_header_bytes and not self._refused:
            self.transport.close()

    def _feed(self, data: bytes) -> None:
        if data and not (self._refused or self.transport.is_closing()):
            self._beside_body += len(data)
            super().data_received(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_headers:  # else it is a trailer, which is not used
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        super().on_headers_complete()
        self._within(self.body_seconds)

    def on_body(self, body: bytes) -> None:
        self._beside_body -= len(body) * (1 + CHUNK)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._done()
        self._in_headers, self._beside_body = True, 0
        super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Any client can ask for another protocol; it is answered in this one."""

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is not HTTP/1.1")

    def _within(self, seconds: float) -> None:
        self._done()
        self._deadline = self.loop.call_later(seconds, self._late, seconds)

    def _done(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self, seconds: float) -> None:
        if self.pipeline or (self._in_headers and self._answering()):
            self._within(seconds)  # an earlier request is being answered, and this one has to wait
        elif self._in_headers and self._beside_body:
            limit = f"the headers did not come within {seconds:g} seconds"
            self._refuse(408, f"{limit} (serving.header_seconds)")
        else:  # nothing has come at all, or the body, whose request was answered, does not end
            self.transport.close()

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int, message: str) -> None:
        """Answer in place of the application, and close the connection."""
        self._refused = True
        self._done()
        self._unset_keepalive_if_required()
        if self._answering():  # a message would be in the middle of that answer
            self.transport.close()
            return
        body = json.dumps(error_body(status, message)).encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[status] + lines + b"\r\n" + body)
        self.loop.call_later(LINGER, self.transport.close)
