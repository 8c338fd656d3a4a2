"""The header of a GGUF file: its metadata, and the places of its tensors.

The gguf package's own reader is not used: it stores every string as a numpy array, which takes 8
seconds for a vocabulary of 49,152 tokens.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easyllm.errors import Unusable

NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""The types of metadata that are numbers, with their ``struct`` formats."""
STRING, ARRAY = 8, 9
VERSIONS = (2, 3)
ALIGNMENT = 32
"""Tensors begin at multiples of this many bytes, if ``general.alignment`` is not given."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor: its shape in torch's order, ggml's number of its type, and its first byte."""

    shape: tuple[int, ...]
    type: int
    start: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    file: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def of_model(self, key: str, default: Any = None) -> Any:
        """The metadata of the architecture, e.g. ``block_count``."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def of_tokenizer(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{key}", default)


def read(file: Path, *, arrays: bool = True) -> Header:
    """The header of a file. Without ``arrays`` the arrays in the metadata, which are its tokens,
    are skipped. Raises Unusable for a file that is not GGUF or is incomplete."""
    try:
        with (
            file.open("rb") as opened,
            mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return _Reader(file, data, arrays).header()
    except (struct.error, ValueError, OverflowError, MemoryError) as error:
        why = "it ends within its header" if isinstance(error, struct.error) else error
        raise Unusable(file, f"cannot be read as GGUF: {why}", "fetch it again") from None
    except OSError as error:
        raise Unusable(file, f"cannot be read: {error.strerror}") from None


class _Reader:
    def __init__(self, file: Path, data: mmap.mmap, arrays: bool):
        self.file, self.data, self.arrays = file, data, arrays
        self.at = 0

    def header(self) -> Header:
        if self.data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self.at = 4
        version = self.number("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            raise ValueError(
                "it is a file for big-endian machines"
                if swapped
                else f"version {version} is not known"
            )
        tensors, entries = self.number("Q"), self.number("Q")
        metadata = {self.string(): self.value(self.number("I")) for _ in range(entries)}
        table = [self.tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", ALIGNMENT)
        data = self.at + -self.at % alignment
        placed = {
            name: TensorInfo(shape, kind, data + offset) for name, shape, kind, offset in table
        }
        return Header(self.file, metadata, placed)

    def number(self, kind: str) -> Any:
        (found,) = struct.unpack_from(f"<{kind}", self.data, self.at)
        self.at += struct.calcsize(kind)
        return found

    def string(self) -> str:
        size, start = self.number("Q"), self.at
        self.skip(size)
        return self.data[start : self.at].decode("utf-8")

    def skip(self, size: int) -> None:
        if size > len(self.data) - self.at:
            raise struct.error
        self.at += size

    def value(self, kind: int) -> Any:
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise ValueError(f"its metadata has a value of type {kind}, which is not known")
        of, count = self.number("I"), self.number("Q")
        if count > len(self.data) - self.at:
            raise struct.error
        if of == STRING and not self.arrays:
            for _ in range(count):
                self.skip(self.number("Q"))
            return None
        if of not in NUMBERS:
            return [self.value(of) for _ in range(count)]
        found = struct.unpack_from(f"<{count}{NUMBERS[of]}", self.data, self.at)
        self.at += struct.calcsize(f"<{count}{NUMBERS[of]}")
        return list(found)

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self.string(), self.number("I")
        sizes = struct.unpack_from(f"<{dimensions}Q", self.data, self.at)
        self.at += 8 * dimensions
        return name, tuple(reversed(sizes)), self.number("I"), self.number("Q")
