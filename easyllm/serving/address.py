"""The address that the API is served at."""

from __future__ import annotations

import errno
import socket

from easyllm.errors import UserError
from easyllm.spec.inference import ServingSpec


def bound(serving: ServingSpec) -> socket.socket:
    """A socket on the address to serve at, not listening yet. Raises UserError."""
    host, port = serving.host, serving.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror:
        raise UserError(
            f"serving.host={host}: no such host; give 127.0.0.1 for this machine only, "
            "0.0.0.0 for all that reach it"
        ) from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"serving.port={port}: is in use on {host}; give another one, "
                f"e.g. serving.port={port + 1 if port < 65535 else port - 1}"
            ) from None
        if error.errno == errno.EACCES:
            raise UserError(
                f"serving.port={port}: this user may not open it; give one above 1023"
            ) from None
        raise UserError(
            f"serving.host={host}: cannot be served at: {error.strerror}; give an address "
            "of this machine"
        ) from None
    return listener
