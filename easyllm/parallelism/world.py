"""The process group that the ranks of a stage share."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from easyllm import heartbeat
from easyllm.data.executors.pool import default_workers
from easyllm.launchers.ranks import FEW_THREADS
from easyllm.parallelism import deepspeed_internals
from easyllm.parallelism.watchdog import Watchdog

_watchdog: Watchdog | None = None
"""The watchdog of this process, between ``watch`` and ``stop``."""

MARGIN = 30.0
"""Seconds that a collective waits longer than the watchdog, whose report has more details."""


def watch(folder: Path, rank: int, timeout_s: float) -> None:
    """End this rank when the time between two calls of ``beat``, here or of
    ``easyllm.heartbeat``, exceeds ``timeout_s``; its report goes into ``folder``."""
    global _watchdog
    _watchdog = Watchdog(folder, rank, timeout_s)
    heartbeat.listen(_watchdog.alive)


def beat(doing: str) -> None:
    """Record what this rank begins now, e.g. ``step 12``; does nothing where it is not watched."""
    if _watchdog is not None:
        _watchdog.beat(doing)


def start(device: Literal["cpu", "cuda"], timeout_s: float = 1800.0) -> torch.device:
    """Join the other ranks (NCCL on CUDA, Gloo on the CPU); returns this rank's device.

    RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT must be in the environment.
    In every group a collective fails if some rank does not arrive within ``timeout_s``.
    """
    os.environ["DS_ACCELERATOR"] = device
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    with quiet():
        import deepspeed
    deepspeed.utils.logger.setLevel(logging.WARNING)
    # DeepSpeed would compile a shared-memory all-reduce, which only its inference uses
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    here = torch.device("cpu")
    if device == "cuda":
        here = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(here)
    beat("joining the other ranks")
    limit = timedelta(seconds=timeout_s + MARGIN)
    deepspeed_internals.check_version()
    with quiet():
        deepspeed.init_distributed(timeout=limit)
    deepspeed_internals.set_group_timeout(limit)
    return here


def repeat_bits(device: torch.device) -> None:
    """From now on compute only with kernels that give the same bits each time; torch raises
    RuntimeError for an operation that has none. Operations on a CPU always give the same bits."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for cuBLAS, when it starts
        os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")  # transformers passes it on
        torch.use_deterministic_algorithms(True)
        # it only helps to find mistakes, and it costs a pass over each new tensor
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def share_cores() -> None:
    """From now on this rank computes with its share of the machine's cores, unless the environment
    gives the number of threads."""
    if FEW_THREADS in os.environ:
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(max(1, default_workers() // ranks))


def unrepeatable(error: RuntimeError) -> str | None:
    """A message that names the operation which has no such kernel, from torch's error; None for
    another error."""
    operation, *rest = str(error).split(" does not have a deterministic implementation")
    return f"{operation} does not give the same bits each time" if rest else None


def stop() -> None:
    """Leave the process group."""
    global _watchdog
    if _watchdog is not None:
        heartbeat.listen(None)
        _watchdog.stop()
        _watchdog = None
    if dist.is_initialized():
        dist.destroy_process_group()


def is_main() -> bool:
    """Whether this is rank 0."""
    return dist.get_rank() == 0


def rank() -> int:
    return dist.get_rank()


def size() -> int:
    """The number of ranks."""
    return dist.get_world_size()


def all_reduce_sum(numbers: Sequence[float], device: torch.device) -> list[float]:
    """The sum of each of ``numbers`` over all ranks, each of which must give the same count."""
    total = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return list(total.tolist())


def broadcast_object(value: Any) -> Any:
    """Rank 0's ``value``, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_gather_object(value: Any) -> list[Any]:
    """The ``value`` of every rank, by rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    dist.barrier()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress what a library prints to standard output."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
