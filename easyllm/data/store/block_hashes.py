"""Hashes of a file's blocks, by which damage on the disk is noticed when a block is first read.

They lie beside the file, in ``<name>.xxh3``: an unsigned 64-bit number for every 64 KiB.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import xxhash

from easyllm.errors import UserError
from easyllm.heartbeat import beat

BLOCK = 1 << 16
"""Bytes: a row's reads lie in one or two blocks, and the hashes are a 8,192nd of the file."""
SUFFIX = ".xxh3"
BLOCKS_A_BEAT = 1 << 12


def write(file: Path) -> None:
    """Write the hashes of a file's blocks beside it."""
    hashes = []
    with file.open("rb", buffering=0) as content:
        while block := content.read(BLOCK):
            hashes.append(xxhash.xxh3_64_intdigest(block))
            if not len(hashes) % BLOCKS_A_BEAT:
                beat()
    np.array(hashes, np.uint64).tofile(_beside(file))


class Blocks:
    """The blocks of a file, each compared with its hash once in this process."""

    def __init__(self, file: Path):
        self.file = file
        try:
            self._hashes = np.fromfile(_beside(file), np.uint64)
            size = file.stat().st_size
        except OSError:
            raise damaged(file) from None
        if len(self._hashes) != -(-size // BLOCK):
            raise damaged(file)
        self._compared = bytearray(len(self._hashes))

    def check(self, descriptor: int, start: int, end: int) -> None:
        """Raises UserError where the blocks of the bytes from ``start`` to ``end`` of the open file
        are not those that were written."""
        first, last = start // BLOCK, -(-end // BLOCK)
        at = self._compared.find(0, first, last)
        while at >= 0:
            block = os.pread(descriptor, BLOCK, at * BLOCK)
            if xxhash.xxh3_64_intdigest(block) != int(self._hashes[at]):
                raise damaged(self.file)
            self._compared[at] = 1
            at = self._compared.find(0, at, last)

    def check_all(self) -> None:
        """Raises UserError where any block is not what was written."""
        with self.file.open("rb", buffering=0) as content:
            for number in range(0, len(self._hashes), BLOCKS_A_BEAT):
                end = min(number + BLOCKS_A_BEAT, len(self._hashes))
                self.check(content.fileno(), number * BLOCK, end * BLOCK)
                beat()


def damaged(file: Path) -> UserError:
    return UserError(
        f"{file} is damaged: its content is not what was written; remove {file.parent}, which is "
        "made again"
    )


def _beside(file: Path) -> Path:
    return file.with_name(file.name + SUFFIX)
