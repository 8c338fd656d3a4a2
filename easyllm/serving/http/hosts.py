"""The names in the header Host that a server answers to.

A site can make its own name resolve to 127.0.0.1 once its page is loaded. To the browser the page's
requests to this machine then have the same origin, and only the Host shows where they come from.
A server with a key needs no check: the page does not have the key.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from easyllm.serving.errors import Refused
from easyllm.spec.inference import ServingSpec


class Hosts:
    """The names that a server answers to."""

    def __init__(self, serving: ServingSpec, keyed: bool):
        self._checked = bool(serving.allowed_hosts) or (local_only(serving.host) and not keyed)
        self._names = {host_name(host) for host in (serving.host, *serving.allowed_hosts)}

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raises Refused for a request whose Host is none of them. A request without a Host does
        not come from a browser."""
        if not self._checked:
            return
        for name, value in headers:
            host = value.decode("latin-1")
            if name == b"host" and host and not self._known(host_name(host)):
                raise Refused(
                    403,
                    f"this server does not accept the name {host!r} in the header Host; ask it as "
                    "localhost, or add the name to serving.allowed_hosts",
                    code="host_not_allowed",
                )

    def _known(self, host: str | None) -> bool:
        return host is not None and (host in self._names or local_only(host))


def host_name(host: str) -> str | None:
    """The name in a Host, without its port, or None where it is malformed."""
    if host.count(":") > 1 and not host.startswith("["):
        host = f"[{host}]"  # as an address is written in a spec
    try:
        parts = urlsplit(f"//{host}")
        name, _ = parts.hostname, parts.port
    except ValueError:
        return None
    plain = parts.netloc == host and not any(c == "@" or c.isspace() for c in host)
    return name.rstrip(".") if name and plain else None


def local_only(host: str) -> bool:
    """Whether a server at ``host`` is reached from its own machine only."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
