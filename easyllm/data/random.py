"""Random numbers that depend on the run's seed and on what they are for, on nothing else."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A generator of its own for each seed and purpose."""
    text = repr((seed, *purpose)).encode()
    entropy = int.from_bytes(hashlib.sha256(text).digest(), "little")
    return np.random.Generator(np.random.PCG64(entropy))
