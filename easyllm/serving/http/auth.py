"""API keys: where they come from and how they are compared."""

from __future__ import annotations

import codecs
import hashlib
import hmac
import os
import re
import shlex
import stat
from collections.abc import Iterable
from pathlib import Path

from easyllm.errors import WrongValue
from easyllm.spec.inference import ServingSpec

VARIABLE = "EASYLLM_API_KEY"
"""Environment variable with a key, or several with commas between."""
COMMENT = re.compile(r"(^|\s)#.*")


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
    """The keys of ``serving.api_key_file`` and of the environment. Raises WrongValue."""
    keys = [key.strip() for key in os.environ.get(VARIABLE, "").split(",") if key.strip()]
    if serving.api_key_file is not None:
        try:
            lines = _text(Path(serving.api_key_file)).splitlines()
        except (OSError, UnicodeError) as error:
            raise WrongValue(
                "serving.api_key_file", serving.api_key_file, f"cannot be read: {error}",
                "give a file with one key a line",
            ) from None  # fmt: skip
        found = [key for line in lines if (key := COMMENT.sub("", line).strip())]
        if not found:
            raise WrongValue(
                "serving.api_key_file", serving.api_key_file, "holds no key", "write one a line"
            )
        keys += found
    return Keys(keys)


def exposed(serving: ServingSpec) -> str | None:
    """A warning for a key file that other users of the machine can read or write."""
    if serving.api_key_file is None:
        return None
    mode = stat.S_IMODE(Path(serving.api_key_file).stat().st_mode)
    if not mode & 0o066:
        return None
    return (
        f"serving.api_key_file={serving.api_key_file}: other users of this machine can read or "
        f"write it (mode {mode:o}); chmod 600 {shlex.quote(serving.api_key_file)}"
    )


def _text(file: Path) -> str:
    """The text of a file, without the byte order marks that editors of Windows write; UTF-8, or
    UTF-16 where its mark says so."""
    data = file.read_bytes()
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if marked else "utf-8").replace("\ufeff", "")
