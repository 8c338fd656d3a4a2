"""The process group that the ranks of a stage share."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist


def start(device: Literal["cpu", "cuda"]) -> torch.device:
    """Join the other ranks (NCCL on CUDA, Gloo on the CPU); returns this rank's device.

    RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT must be in the environment.
    """
    os.environ["DS_ACCELERATOR"] = device
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    with quiet():
        import deepspeed
    deepspeed.utils.logger.setLevel(logging.WARNING)
    # DeepSpeed would compile a shared-memory all-reduce that only its inference uses
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    here = torch.device("cpu")
    if device == "cuda":
        here = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(here)
    with quiet():
        deepspeed.init_distributed()
    return here


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def first() -> bool:
    """Whether this is rank 0."""
    return dist.get_rank() == 0


def rank() -> int:
    return dist.get_rank()


def size() -> int:
    """How many ranks there are."""
    return dist.get_world_size()


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is set on any rank; all ranks must call it and hear the same."""
    vote = torch.tensor(int(flag), device=device)
    dist.all_reduce(vote, op=dist.ReduceOp.MAX)
    return bool(vote.item())


def from_first(value: Any) -> Any:
    """Rank 0's ``value``, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all(value: Any) -> list[Any]:
    """The ``value`` of every rank, by rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    dist.barrier()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow what a library prints to standard output."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
