"""Messages between the machine that owns a run and the agents on the others.

A message is a JSON object after its length, with a hash of both ends' secret before it once they
have proved that they know it. Both ends send an empty message every few seconds, so that the loss
of a machine is noticed.
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
"""Seconds between empty messages."""

SILENT = 10.0
"""Seconds without any message after which the other end counts as lost."""

LARGEST = 1 << 26
"""Most bytes of a message."""

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
        """Numbers of messages with a hash, which includes the number: none is lost or repeated."""

    def sign(self, key: bytes, own: str, other: str) -> None:
        """From now on send and expect a hash with each message; the ends have different names."""
        self.key, self.own, self.other = key, own, other

    @property
    def address(self) -> str:
        """This end's own address."""
        return str(self.connection.getsockname()[0])

    def live(self) -> None:
        """From now on send and expect empty messages."""
        self.connection.settimeout(SILENT)
        threading.Thread(target=self._beat, daemon=True).start()

    def send(self, message: Message) -> None:
        """Send, or do nothing if the other end is lost, which ``receive`` shows."""
        body = json.dumps(message).encode()
        with self.sending, contextlib.suppress(OSError):
            if self.key is not None:
                body = self._hash(self.key, self.own, self.sent, body) + body
                self.sent += 1
            self.connection.sendall(struct.pack("!I", len(body)) + body)

    def receive(self, largest: int = LARGEST) -> dict[str, Any] | None:
        """The next message that is not empty; None when the other end has closed the connection, is
        silent, or sends a message without the right hash."""
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

    Gloo would take the interface of the host's name, which is the loopback on many machines.
    """
    name = interface_of(address)
    return {**({"GLOO_SOCKET_IFNAME": name} if name else {}), **base}
