"""Hashes of a file's blocks, by which damage on the disk is found when a block is first read.

They are beside the file, in ``<name>.xxh3``: an unsigned 64-bit number for every 16 KiB.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xxhash

from easyllm.errors import UserError
from easyllm.heartbeat import beat

BLOCK = 1 << 14
"""Bytes. A row of 4,096 tokens is as long as a block and spans two: larger blocks read more than
is needed, smaller ones need more calls."""
SUFFIX = ".xxh3"
AT_ONCE = 1 << 8
"""Blocks read at once."""


def write(file: Path) -> None:
    """Write the hashes of a file's blocks beside it."""
    hashes: list[int] = []
    with file.open("rb", buffering=0) as content:
        while span := memoryview(content.read(AT_ONCE * BLOCK)):
            hashes.extend(_hash(span, place) for place in range(-(-len(span) // BLOCK)))
            beat()
    np.array(hashes, np.uint64).tofile(_beside(file))


class Blocks:
    """The blocks of a file, each compared with its hash once in this process."""

    def __init__(self, file: Path):
        self.file = file
        try:
            self._size = file.stat().st_size
            count = -(-self._size // BLOCK)
            if _beside(file).stat().st_size != 8 * count:
                raise damaged(file)
            # mapped: the processes of a node share its pages
            self._hashes = (
                np.asarray(np.memmap(_beside(file), np.uint64, "r")) if count else np.zeros(0)
            )
        except OSError:
            raise damaged(file) from None
        self._compared = bytearray(count)

    def compared(self, start: int, end: int) -> bool:
        """Whether all blocks of the bytes from ``start`` to ``end`` have been compared."""
        return self._compared.find(0, start // BLOCK, -(-end // BLOCK)) < 0

    def read(self, descriptor: int, start: int, into: memoryview) -> None:
        """Fill ``into`` with the bytes of the open file from ``start`` on. Raises UserError where
        their blocks are not what was written."""
        end = start + len(into)
        for first, span in self._spans(descriptor, start // BLOCK, -(-end // BLOCK)):
            low, high = max(start, first * BLOCK), min(end, first * BLOCK + len(span))
            into[low - start : high - start] = span[low - first * BLOCK : high - first * BLOCK]

    def check_all(self) -> None:
        """Raises UserError where any block is not what was written."""
        with self.file.open("rb", buffering=0) as content:
            for _ in self._spans(content.fileno(), 0, len(self._compared)):
                beat()

    def _spans(self, descriptor: int, first: int, last: int) -> Iterator[tuple[int, memoryview]]:
        """The bytes of the blocks from ``first`` to ``last``, compared: ``AT_ONCE`` blocks at a
        time, with the number of the first of them."""
        for at in range(first, last, AT_ONCE):
            count = min(AT_ONCE, last - at)
            span = memoryview(os.pread(descriptor, count * BLOCK, at * BLOCK))
            if len(span) != min(count * BLOCK, self._size - at * BLOCK):
                raise damaged(self.file)
            for place in range(count):
                if not self._compared[at + place]:
                    if _hash(span, place) != self._hashes.item(at + place):
                        raise damaged(self.file)
                    self._compared[at + place] = 1
            yield at, span


def _hash(span: memoryview, place: int) -> int:
    return xxhash.xxh3_64_intdigest(span[place * BLOCK : (place + 1) * BLOCK])


def damaged(file: Path) -> UserError:
    return UserError(
        f"{file} is damaged: its content is not what was written; remove {file.parent}, which is "
        "made again"
    )


def _beside(file: Path) -> Path:
    return file.with_name(file.name + SUFFIX)
