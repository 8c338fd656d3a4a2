"""Messages between the machine that owns a run and the agents on the others.

A message is a JSON object behind its length, with a hash of both ends' secret before it once they
have shown that they know one. Both ends send an empty one every few seconds, so that a machine that
has vanished without a word is missed.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any

BEAT = 2.0
"""Seconds between signs of life."""

SILENT = 10.0
"""Seconds without one after which the other end counts as gone."""

LARGEST = 1 << 26
"""Bytes of a message at most."""

HASH = 32
"""Bytes of a message's hash, HMAC with SHA-256."""

Message = Mapping[str, Any]


class Channel:
    """A connection to another machine."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self.sending = threading.Lock()
        self.closed = threading.Event()
        self.key: bytes | None = None
        self.own = self.other = ""
        self.sent = self.received = 0
        """Messages with a hash, which tells their number: none is left out or comes twice."""

    def sign(self, key: bytes, own: str, other: str) -> None:
        """From now on send and expect a hash with each message; the ends have different names."""
        self.key, self.own, self.other = key, own, other

    @property
    def address(self) -> str:
        """This end's own address."""
        return str(self.connection.getsockname()[0])

    def live(self) -> None:
        """Send and expect signs of life from now on."""
        self.connection.settimeout(SILENT)
        threading.Thread(target=self._beat, daemon=True).start()

    def send(self, message: Message) -> None:
        """Send, or do nothing where the other end has gone: ``receive`` tells that."""
        body = json.dumps(message).encode()
        with self.sending, contextlib.suppress(OSError):
            if self.key is not None:
                body = self._hash(self.key, self.own, self.sent, body) + body
                self.sent += 1
            self.connection.sendall(struct.pack("!I", len(body)) + body)

    def receive(self, largest: int = LARGEST) -> dict[str, Any] | None:
        """The next message that is not empty; None when the other end has gone, is silent, or sends
        what does not bear its hash."""
        with contextlib.suppress(OSError, ValueError):
            while True:
                (size,) = struct.unpack("!I", self._exactly(4))
                if size > largest:
                    return None
                body = self._exactly(size)
                if self.key is not None:
                    tag, body = body[:HASH], body[HASH:]
                    expected = self._hash(self.key, self.other, self.received, body)
                    if not hmac.compare_digest(tag, expected):
                        return None
                    self.received += 1
                message = json.loads(body)
                if not isinstance(message, dict):
                    return None
                if message:
                    return message
        return None

    def close(self) -> None:
        self.closed.set()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    @staticmethod
    def _hash(key: bytes, sender: str, number: int, body: bytes) -> bytes:
        return hmac.digest(key, f"{sender}:{number}:".encode() + body, "sha256")

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            chunk = self.connection.recv(min(size - len(found), 1 << 16))
            if not chunk:
                raise ConnectionError("the other end has closed the connection")
            found += chunk
        return found

    def _beat(self) -> None:
        while not self.closed.wait(BEAT):
            self.send({})


def interface_of(address: str) -> str | None:
    """The network interface that has ``address``; None where that is unknown."""
    import fcntl

    get_address = 0x8915  # SIOCGIFADDR
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                found = fcntl.ioctl(probe, get_address, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    return None


def routed(base: Mapping[str, str], address: str) -> dict[str, str]:
    """``base`` with gloo on the interface that has ``address``.

    Gloo would take the one that the host's name stands for, which is the loopback on many a
    machine.
    """
    name = interface_of(address)
    return {**({"GLOO_SOCKET_IFNAME": name} if name else {}), **base}
