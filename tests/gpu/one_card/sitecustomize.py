"""Lets ranks share one CUDA device, which NCCL refuses: every Python process whose PYTHONPATH names
this folder imports it first. In a rank the first device is the only one, processes talk by Gloo,
and what Gloo does not send from a device goes through the machine's memory."""

from __future__ import annotations

import os
from typing import Any


def share() -> None:
    os.environ.update(CUDA_VISIBLE_DEVICES="0", LOCAL_RANK="0")
    import torch
    import torch.distributed as dist

    init = dist.init_process_group

    def by_gloo(backend: Any = None, *given: Any, **named: Any) -> None:
        named.pop("device_id", None)
        init("gloo", *given, **named)

    class Done:
        def wait(self, *_: Any) -> bool:
            return True

    def staged(call: Any) -> Any:
        def through_memory(*given: Any, async_op: bool = False, **named: Any) -> Any:
            copies: list[tuple[Any, Any]] = []

            def copied(part: Any) -> Any:
                if isinstance(part, list):
                    return [copied(one) for one in part]
                if not isinstance(part, torch.Tensor) or not part.is_cuda:
                    return part
                copies.append((part, part.cpu()))
                return copies[-1][1]

            found = call(*map(copied, given), **{key: copied(part) for key, part in named.items()})
            for place, copy in copies:
                place.copy_(copy)
            return Done() if async_op else found

        return through_memory

    barrier = dist.barrier
    dist.init_process_group = by_gloo
    dist.barrier = lambda *given, device_ids=None, **named: barrier(*given, **named)
    for name in ("send", "recv", "all_gather", "all_gather_into_tensor", "_all_gather_base",
                 "reduce_scatter", "reduce_scatter_tensor", "_reduce_scatter_base",
                 "gather", "scatter", "reduce"):  # fmt: skip
        setattr(dist, name, staged(getattr(dist, name)))


if "LOCAL_RANK" in os.environ:
    share()
