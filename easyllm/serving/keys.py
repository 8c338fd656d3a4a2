"""API keys: where they come from and how they are compared."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path

from easyllm.errors import UserError
from easyllm.spec.inference import ServingSpec

VARIABLE = "EASYLLM_API_KEY"
"""Environment variable with a key, or several with commas between."""


class Keys:
    """The accepted keys; with none every client is accepted."""

    def __init__(self, keys: Iterable[str]):
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, key: str | None) -> bool:
        """Whether a client with this key may ask; takes the same time for every wrong one."""
        if not self._digests:
            return True
        given = hashlib.sha256((key or "").encode("utf-8", "surrogateescape")).digest()
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(matches)


def load_keys(serving: ServingSpec) -> Keys:
    """The keys of ``serving.api_key_file`` and of the environment. Raises UserError."""
    keys = [key.strip() for key in os.environ.get(VARIABLE, "").split(",") if key.strip()]
    if serving.api_key_file is not None:
        try:
            lines = Path(serving.api_key_file).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"serving.api_key_file={serving.api_key_file}: cannot be read: {error}; give a "
                "file with one key a line"
            ) from None
        found = [line.strip() for line in lines if line.strip() and line[:1] != "#"]
        if not found:
            raise UserError(
                f"serving.api_key_file={serving.api_key_file}: holds no key; write one a line"
            )
        keys += found
    return Keys(keys)


def local_only(host: str) -> bool:
    """Whether a server at ``host`` is reached from its own machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
