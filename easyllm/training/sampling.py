"""Which samples each replica trains on: a pure function of how many were trained before."""

from __future__ import annotations

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
