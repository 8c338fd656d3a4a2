"""Random numbers that depend only on the run's seed and on what they are for."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A separate generator for each seed and purpose."""
    text = repr((seed, *purpose)).encode()
    entropy = int.from_bytes(hashlib.sha256(text).digest(), "little")
    return np.random.Generator(np.random.PCG64(entropy))
