"""All undocumented parts of DeepSpeed that easyllm reads or replaces.

It was written for and tested with DeepSpeed 0.19.8; ``check_version`` refuses releases other than
0.19. Each function says why it is needed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.comm import comm
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.pipe import schedule

from easyllm.errors import UserError
from easyllm.parallelism.fragments import Fragment

RELEASE = "0.19"

COLLECTIVES = (
    "all_reduce", "all_reduce_coalesced", "reduce", "reduce_scatter", "reduce_scatter_tensor",
    "broadcast", "all_gather", "all_gather_into_tensor", "all_gather_coalesced",
    "all_to_all_single", "all_to_all", "send", "recv", "barrier",
)  # fmt: skip
"""The methods that DeepSpeed calls on its communication backend."""

INSTRUCTIONS = {
    schedule.LoadMicroBatch: "data",
    schedule.ForwardPass: "forward",
    schedule.BackwardPass: "backward",
    schedule.SendActivation: "communication",
    schedule.SendGrad: "communication",
    schedule.RecvActivation: "bubble",
    schedule.RecvGrad: "bubble",
    schedule.ReduceGrads: "communication",
    schedule.ReduceTiedGrads: "communication",
    schedule.OptimizerStep: "optimizer",
}
"""The phase of a step to which each instruction of DeepSpeed's pipeline belongs."""


def check_version() -> None:
    """Raises UserError for a DeepSpeed release whose internals may be different."""
    found = deepspeed.__version__.split("+")[0]
    if ".".join(found.split(".")[:2]) != RELEASE:
        raise UserError(
            f"DeepSpeed {found} is installed, and training works with {RELEASE}; "
            f"pip install 'deepspeed~={RELEASE}.0'"
        )


def set_group_timeout(limit: timedelta) -> None:
    """Set the timeout of all groups that DeepSpeed makes. They would have torch's default, 10
    minutes on CUDA, which ends a rank before the watchdog can report which ranks it waited for."""
    comm.cdb.new_group = functools.partial(dist.new_group, timeout=limit)


def wrap_instructions(runtime: Any, timed: Callable[[str, Callable[..., Any]], Any]) -> None:
    """Replace each instruction of the pipeline engine by ``timed(phase, instruction)``. DeepSpeed's
    own timers would synchronize the device at each instruction."""
    runtime._INSTRUCTION_MAP = {
        instruction: timed(INSTRUCTIONS[instruction], function)
        for instruction, function in runtime._INSTRUCTION_MAP.items()
    }


def wrap_collectives(wrapped: Callable[[Callable[..., Any]], Any]) -> None:
    """Replace the methods of the communication backend by ``wrapped(method)``, for all engines of
    this process."""
    backend: Any = comm.cdb
    for name in COLLECTIVES:
        if method := getattr(type(backend), name, None):
            setattr(backend, name, wrapped(functools.partial(method, backend)))


def whole_shape(parameter: torch.Tensor) -> torch.Size:
    """The shape of the whole parameter, which ZeRO 3 may have flattened and split."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


class BoundedPipeline(PipelineModule):
    """DeepSpeed's pipeline, split at given bounds. DeepSpeed's own methods may leave a stage empty,
    and build every layer to count its parameters."""

    own: slice
    """This stage's layers."""

    def __init__(self, *, bounds: list[int], **settings: Any):
        super().__init__(partition_method=bounds, **settings)

    def _partition_layers(self, method: list[int]) -> None:
        stage = self._topo.get_coord(self.global_rank).pipe
        self.parts = method
        self._set_bounds(start=method[stage], stop=method[stage + 1])
        self.own = slice(method[stage], method[stage + 1])


def fragments(
    runtime: Any, parameters: Iterable[tuple[str, torch.nn.Parameter]]
) -> Iterator[Fragment]:
    """The fragments of ``parameters`` that this rank's optimizer holds, by name and in order.

    ``runtime`` is DeepSpeed's engine around the model that they belong to.
    """
    optimizer = runtime.optimizer
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_id"):
            yield _of_stage_3(name, parameter, optimizer)
        elif not hasattr(parameter, "_hp_mapping"):
            yield Fragment(name, 0, parameter.numel(), parameter, 0, low_precision=False)
        elif (part := parameter._hp_mapping) is not None:
            own, flat = part.lp_fragment_address, part.hp_fragment_address
            held = optimizer.optimizer.param_groups[part.param_group_index]["params"][0]
            low = parameter.dtype is not held.dtype
            yield Fragment(name, own.start, own.numel, held, flat.start, low)


def _of_stage_3(name: str, parameter: Any, optimizer: Any) -> Fragment:
    """Each rank holds an equal part of each parameter, the last one's padded."""
    group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
    begin = min(size * dist.get_rank(), parameter.ds_numel)
    length = min(size, parameter.ds_numel - begin)
    held = optimizer.fp32_partitioned_groups_flat[group]
    low = parameter.ds_tensor.dtype is not held.dtype
    return Fragment(name, begin, length, held, offset, low)


def clipping(
    optimizer: Any, limit: float, spread_over: dist.ProcessGroup | None
) -> Callable[[], None]:
    """Clips by the norm of the whole gradient, and stores that norm where DeepSpeed reads it.

    Without ZeRO, DeepSpeed does not give the norm, and counts the pipeline's shared weights more
    than once.
    """

    def clip() -> None:
        grads = [
            (p.grad, getattr(p, "ds_pipe_replicated", False))
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        squares = [grad.float().square().sum() for grad, repeated in grads if not repeated]
        total = torch.stack(squares).sum()
        if spread_over is not None:
            dist.all_reduce(total, group=spread_over)
        norm = math.sqrt(total.item())
        if limit and norm > limit:
            for grad, _repeated in grads:
                grad.mul_(limit / norm)
        optimizer._global_grad_norm = norm

    return clip


def skip_nonfinite(optimizer: Any, runtime: Any, clip: Callable[[], None] | None) -> None:
    """Make the optimizer skip updates whose gradient is not finite.

    DeepSpeed does not check that in every layout. It has computed the norm over all ranks before it
    calls the optimizer, so all ranks skip the same updates.
    """
    step = optimizer.step

    def guarded(*arguments: Any, **named: Any) -> Any:
        if clip is not None:
            clip()
        norm = getattr(runtime.optimizer, "_global_grad_norm", None)
        # some of its helpers mark a norm that is not finite by a negative number
        if norm is not None and not (math.isfinite(norm) and norm >= 0):
            return None
        return step(*arguments, **named)

    optimizer.step = guarded
