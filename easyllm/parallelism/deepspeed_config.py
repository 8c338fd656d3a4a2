"""DeepSpeed's configuration: settings that follow from the spec, and those that a user may add.
Light.

Written for DeepSpeed 0.19. ``docs/deepspeed.md`` lists every setting that the losses depend on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from easyllm.spec.problems import Problem, near
from easyllm.spec.roles import Parallelism
from easyllm.spec.schema import flatten

if TYPE_CHECKING:
    from easyllm.spec.run import RunSpec

SHORT = {"float32": "fp32", "bfloat16": "bf16"}
"""DeepSpeed's names of types."""

ZERO = "zero_optimization"

FREE: dict[str, type] = {
    f"{ZERO}.overlap_comm": bool,
    f"{ZERO}.reduce_bucket_size": int,
    f"{ZERO}.allgather_bucket_size": int,
    f"{ZERO}.use_multi_rank_bucket_allreduce": bool,
    f"{ZERO}.sub_group_size": int,
    f"{ZERO}.stage3_prefetch_bucket_size": int,
    f"{ZERO}.stage3_param_persistence_threshold": int,
    f"{ZERO}.stage3_max_live_parameters": int,
    f"{ZERO}.stage3_max_reuse_distance": int,
    "bf16.immediate_grad_update": bool,
}
"""Settings that ``parallelism.deepspeed`` may hold. They change speed and memory, and losses by
rounding only. Counts are numbers of elements."""

OURS = {
    "train_batch_size": "parallelism.global_batch_size",
    "train_micro_batch_size_per_gpu": "parallelism.micro_batch_size",
    "gradient_accumulation_steps": "parallelism.global_batch_size",
    "gradient_clipping": "training.gradient_clipping",
    "communication_data_type": "parallelism.reduce_dtype",
    "seq_parallel_communication_data_type": "parallelism.reduce_dtype",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "torch_autocast": "model.dtype",
    "data_types": "model.dtype",
    f"{ZERO}.stage": "parallelism.zero_stage",
    f"{ZERO}.offload_optimizer": "parallelism.offload",
    f"{ZERO}.offload_param": "parallelism.offload",
    f"{ZERO}.cpu_offload": "parallelism.offload",
    f"{ZERO}.cpu_offload_param": "parallelism.offload",
    f"{ZERO}.cpu_offload_use_pin_memory": "parallelism.offload",
    "optimizer": "training.optimizer",
    "zero_force_ds_cpu_optimizer": "training.optimizer",
    "zero_allow_untested_optimizer": "training.optimizer",
    "scheduler": "training.schedule",
    "activation_checkpointing": "parallelism.checkpoint_activations",
    "pipeline": "parallelism.pipeline_stages",
    "checkpoint": "training.checkpoint",
    "compile": "model.compile",
    "tensorboard": "training.trackers",
    "wandb": "training.trackers",
    "comet": "training.trackers",
    "csv_monitor": "training.trackers",
    "steps_per_print": "training.trackers",
    "flops_profiler": "training.profile",
    "wall_clock_breakdown": "training.profile",
    "memory_breakdown": "training.profile",
    "timers": "training.profile",
}
"""easyllm's key from which a DeepSpeed setting follows, by DeepSpeed's key or its prefix."""

_MEAN = "the gradient would not be the mean over the trained tokens of the batch"
_EXACT = "weights or gradients would be sent in fewer bits, which changes the losses"

BREAKS = {
    "prescale_gradients": _MEAN,
    "gradient_predivide_factor": _MEAN,
    "gradient_allreduce_op": _MEAN,
    "managed_gradient_accumulation": _MEAN,
    f"{ZERO}.zero_quantized_weights": _EXACT,
    f"{ZERO}.zero_quantized_nontrainable_weights": _EXACT,
    f"{ZERO}.zero_quantized_gradients": _EXACT,
    f"{ZERO}.zenflow": "updates would lag behind their gradients, which changes the losses",
    f"{ZERO}.compute_grad_norm": "a step without a finite gradient is known by its norm",
    f"{ZERO}.reduce_scatter": "off, DeepSpeed 0.19.8 has failed in the backward pass",
    f"{ZERO}.round_robin_gradients": "checkpoints would not find an optimizer's state by parameter",
    "data_efficiency": "training reads its rows itself",
    "dataloader_drop_last": "training reads its rows itself",
    "tensor_parallel": "the engine of a layout would be another",
    "expert_parallel": "the engine of a layout would be another",
    "sequence_parallel_size": "the engine of a layout would be another",
    "hybrid_engine": "the engine of a layout would be another",
}
"""Why a DeepSpeed setting is refused, by its key or its prefix."""


def configuration(run: RunSpec, layout: Parallelism) -> dict[str, Any]:
    """The configuration for DeepSpeed, with ``parallelism.deepspeed`` merged into it.

    Settings that decide the losses are given even where they are DeepSpeed's default.
    """
    stage = sum(layout.state_shards)
    found: dict[str, Any] = {
        "train_batch_size": layout.global_batch_size,
        "train_micro_batch_size_per_gpu": layout.micro_batch_size,
        "gradient_accumulation_steps": layout.accumulation(run.hardware.ranks),
        # without ZeRO DeepSpeed clips by the norm of one stage only, so the engine clips instead
        "gradient_clipping": run.training.gradient_clipping if stage else 0.0,
        "steps_per_print": None,
        # its timer waits for the device twice in each micro-batch
        "timers": {"throughput": {"enabled": False}},
        "bf16": {"enabled": run.model.dtype == "bfloat16"},
        # without it micro-batches of bf16 gradients are summed in bf16
        "data_types": {"grad_accum_dtype": "fp32"},
        # without it gradients are cast to bf16 before they are summed over the replicas
        "communication_data_type": SHORT[layout.reduce_dtype],
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "gradient_allreduce_op": "mean",
        ZERO: {"stage": stage, "overlap_comm": stage == 3} | _offloaded(run, layout),
        # torch's optimizers also work on a CPU, and need no compilation
        "zero_force_ds_cpu_optimizer": False,
        # the user's own optimizer class is allowed as well as torch's
        "zero_allow_untested_optimizer": True,
        "pipeline": {"use_reentrant": False},
    }
    for name, value in _leaves(layout.deepspeed).items():
        *path, last = name.split(".")
        place = found
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value if FREE.get(name) is bool else int(value)
    return found


def effective(config: Any) -> dict[str, Any]:
    """All settings as DeepSpeed has read them, including its own defaults, as plain data.

    ``config`` is a ``deepspeed.runtime.config.DeepSpeedConfig``.
    """
    return {name: _plain(value) for name, value in sorted(vars(config).items()) if name[0] != "_"}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return _plain(vars(value)) if hasattr(value, "__dict__") else str(value)


def _offloaded(run: RunSpec, layout: Parallelism) -> dict[str, Any]:
    """The settings for what DeepSpeed keeps in host memory."""
    place = {"device": "cpu", "pin_memory": run.hardware.device == "cuda"}
    states, parameters = layout.offloads
    found = {"offload_optimizer": place} if states else {}
    return found | ({"offload_param": place} if parameters else {})


def problems(layout: Parallelism, key: str) -> Iterator[Problem]:
    """Settings that ``layout.deepspeed`` must not hold. ``key`` is the dotted key of the layout."""
    for name, value in _leaves(layout.deepspeed).items():
        at = f"{key}.deepspeed.{name}"
        if name in FREE:
            yield from _value_problems(at, value, FREE[name])
        elif own := _known(name, OURS):
            yield Problem(at, value, f"follows from {own}", f"give {own}, and leave this out")
        elif why := _known(name, BREAKS):
            yield Problem(at, value, why, "leave it out")
        else:
            yield Problem(
                at, value, "is not a DeepSpeed setting that can be given here",
                near(name, FREE, under=f"{key}.deepspeed") or f"there are: {', '.join(FREE)}",
            )  # fmt: skip


def _value_problems(at: str, value: Any, kind: type) -> Iterator[Problem]:
    if kind is bool:
        if not isinstance(value, bool):
            yield Problem(at, value, "must be true or false", f"give {at}=true")
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    whole = number and math.isfinite(value) and value == int(value) and value >= 0
    if not whole or (value == 0 and at.endswith(".reduce_bucket_size")):
        yield Problem(at, value, "must be a number of elements", f"give {at}=500000000")
    elif at.endswith(".allgather_bucket_size") and value % 2:
        yield Problem(at, value, "must be even", f"give {at}={int(value) + 1}")


def _known(name: str, table: Mapping[str, str]) -> str | None:
    """The value in ``table`` for a dotted name or a prefix of it."""
    parts = name.split(".")
    found = (table.get(".".join(parts[:n])) for n in range(len(parts), 0, -1))
    return next(filter(None, found), None)


def _leaves(overlay: Mapping[str, Any]) -> dict[str, Any]:
    return flatten(overlay) if overlay else {}
