"""Messages between two processes that trust each other, over a pair of connected sockets.

``multiprocessing.Pipe`` does not work with event loops: uvloop makes a pipe that it watches
non-blocking, and a message longer than the socket's buffer is then cut off.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

_LENGTH = struct.Struct("!Q")
"""Bytes of the pickled message that follows."""


def packed(message: Any) -> bytes:
    """A message as the bytes that are sent over a socket."""
    body = pickle.dumps(message)
    return _LENGTH.pack(len(body)) + body


async def received(reader: asyncio.StreamReader) -> AsyncIterator[Any]:
    """The messages that arrive, until the other end is closed."""
    while True:
        try:
            (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            body = await reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            return
        yield pickle.loads(body)


class Wire:
    """An end of the pair for threads; its calls block. It reads no further than a message, so
    that an event loop may take over the socket."""

    def __init__(self, end: socket.socket):
        self._socket = end

    def send(self, message: Any) -> None:
        """Raises OSError where the other end is closed."""
        self._socket.sendall(packed(message))

    def receive(self) -> Any:
        """The next message. Raises EOFError or OSError where the other end is closed."""
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        return pickle.loads(self._exactly(length))

    def _exactly(self, length: int) -> bytearray:
        data = bytearray()
        while len(data) < length:
            part = self._socket.recv(length - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def close(self) -> None:
        """Close the socket, which wakes the other end and threads that wait at this one."""
        with suppress(OSError):  # the other end has closed it already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
