"""The samples that each replica trains on, and the seeds of its random draws: pure functions of how
much was trained before."""

from __future__ import annotations

import random

import numpy as np
import torch

from easyllm.spec.roles import Parallelism


def samples_of(
    consumed: int, layout: Parallelism, data_rank: int, replicas: int
) -> list[list[int]]:
    """Global sample indices of the next step's micro-batches on replica ``data_rank``.

    ``consumed`` samples were trained before. The replicas' samples are disjoint and together
    ``consumed .. consumed + global_batch_size``.
    """
    size = layout.micro_batch_size
    return [
        list(range(begin, begin + size))
        for begin in range(
            consumed + data_rank * size, consumed + layout.global_batch_size, replicas * size
        )
    ]


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed all random generators for a step, such as dropout's, so that a resumed run draws the
    same without their saved state."""
    drawn = int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
    # torch.manual_seed would format a stack trace for each kind of device that is not there
    torch.default_generator.manual_seed(drawn)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(drawn)
    np.random.seed(drawn)
    random.seed(drawn)
