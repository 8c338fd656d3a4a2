"""Metrics of one step that are computed for its line."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from easyllm.spec.roles import ModelShape

if TYPE_CHECKING:
    import torch

    from easyllm.parallelism.engine import TrainEngine
    from easyllm.training.setup import Setup

MACOS = sys.platform == "darwin"
"""On macOS a process's memory is counted in bytes, elsewhere in KiB."""


def speed(setup: Setup, seconds: float) -> dict[str, float]:
    """The speed of a step that took ``seconds``, the mean over the ranks: tokens per second, of all
    devices and of each one, and the model FLOPs utilization where the device's peak is known."""
    run, rows = setup.run, setup.rows
    ranks, peak = run.hardware.ranks, run.hardware.peak_tflops
    rate = run.parallelism.global_batch_size * rows.seq_len / seconds
    found = {"tokens_per_second": rate, "tokens_per_second_per_device": rate / ranks}
    if peak:
        shape = setup.family.shape(setup.config.to_dict())
        counts = (setup.active * n for n in (setup.parameters, setup.trained_parameters))
        used, trained = map(int, counts)
        flops = flops_per_token(shape, used, rows.seq_len, trained)
        found["mfu"] = rate * flops / (peak * 1e12 * ranks)
    return found


def flops_per_token(
    shape: ModelShape, parameters: int, seq_len: int, trained: int | None = None
) -> float:
    """Floating point operations of forward and backward pass: 6 N + 12 L H Q T.

    The formula of PaLM (Chowdhery et al., 2022, appendix B), where N is all parameters.
    Recomputation does not count, and attention is counted in full although it is causal. No
    gradient is computed for frozen parameters: where only some are ``trained``, 6 N is replaced by
    4 N plus 2 for each trained one.
    """
    trained = parameters if trained is None else trained
    products = 4 * parameters + 2 * trained
    return products + 12 * shape.layers * shape.heads * shape.head_dim * seq_len


def routers(numbers: Sequence[float], engine: TrainEngine) -> dict[str, float]:
    """From the sums of ``TrainEngine.router_metrics``: the loss over the routers and the load of
    the experts; empty for a model without them."""
    if engine.balance is None:
        return {}
    from easyllm.models.decoders.balance import expert_load

    loss, *counts = numbers
    return {"router_aux_loss": loss, **expert_load(counts, engine.balance.experts)}


def peak_memory(device: torch.device) -> int:
    """Peak bytes that this rank has used: of its GPU, or of host memory where it has none."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if MACOS else 1024)


def progress_fields(line: Mapping[str, Any]) -> dict[str, str]:
    """What the progress bar shows of a step besides its number, the rate and the time left."""
    loss = line["loss"]
    found = {"loss": "skipped" if loss is None else f"{loss:.3f}"}
    found["tok/s"] = f"{line['tokens_per_second']:,.0f}"
    if (each := line["tokens_per_second_per_device"]) != line["tokens_per_second"]:
        found["tok/s/device"] = f"{each:,.0f}"
    if "mfu" in line:
        found["MFU"] = f"{line['mfu']:.1%}"
    found["memory"] = f"{line['memory_gb']:.1f}GB"
    return found
