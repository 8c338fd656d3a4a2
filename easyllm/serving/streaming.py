"""Responses that end when their client leaves: streams, and answers that are waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Send

T = TypeVar("T")

CLIENT_LEFT = 499
"""nginx's status for a client that did not wait; no client receives it."""


class ClientLeft(Exception):
    """The client has closed the connection."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client leaves.

    Raises ClientLeft then.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeft
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Last(bytes):
    """The last part of a stream, which is sent together with its end."""


class Stream(StreamingResponse):
    """Sends the parts of a generator and closes it at the end, whatever ends it."""

    def __init__(self, parts: AsyncGenerator[bytes, None], media_type: str):
        # proxies such as nginx would otherwise buffer the parts
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(parts, headers=headers, media_type=media_type)
        self._parts = parts

    async def stream_response(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        more = True
        async with aclosing(self._parts):
            async for part in self._parts:
                more = not isinstance(part, Last)
                await send({"type": "http.response.body", "body": part, "more_body": more})
        if more:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
