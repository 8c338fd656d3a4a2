"""The address that the API is served at."""

from __future__ import annotations

import errno
import socket

from easyllm.errors import WrongValue
from easyllm.spec.inference import ServingSpec


def bound(serving: ServingSpec) -> socket.socket:
    """A socket on the address to serve at, not listening yet. Raises WrongValue."""
    host, port = serving.host, serving.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):  # a label that is empty or has over 63 characters
        raise WrongValue(
            "serving.host", host, "no such host",
            "give 127.0.0.1 for this machine only, 0.0.0.0 for all that reach it",
        ) from None  # fmt: skip
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise WrongValue(
                "serving.port", port, f"is in use on {host}",
                f"give another one, e.g. serving.port={port + 1 if port < 65535 else port - 1}",
            ) from None  # fmt: skip
        if error.errno == errno.EACCES:
            raise WrongValue(
                "serving.port", port, "this user may not open it", "give one above 1023"
            ) from None
        raise WrongValue(
            "serving.host", host, f"cannot be served at: {error.strerror}",
            "give an address of this machine",
        ) from None  # fmt: skip
    return listener
