"""Layouts of training over the ranks; each one builds its training engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from easyllm.parallelism import deepspeed_config
from easyllm.spec.problems import Problem
from easyllm.spec.roles import Parallelism
from easyllm.spec.types import Count

if TYPE_CHECKING:
    from easyllm.parallelism.engine import TrainEngine
    from easyllm.spec.run import RunSpec


def _precision(zero_stage: int, key: str, run: RunSpec) -> Iterator[Problem]:
    if zero_stage == 0 and run.model.dtype == "bfloat16":
        yield Problem(
            f"{key}.zero_stage",
            zero_stage,
            "keeps no fp32 copy of bfloat16 weights for the optimizer",
            "give 1, or model.dtype=float32",
            also=("model.dtype",),
        )


@dataclass(frozen=True, kw_only=True)
class Pipeline(Parallelism):
    """Consecutive layers are on consecutive ranks, and micro-batches pass through them (1F1B)."""

    pipeline_stages: Count = 2
    """Number of ranks over which one replica of the model is split."""
    partition: Literal["parameters", "uniform", "balanced"] = "parameters"
    """How layers are divided over the stages. ``parameters`` gives each stage about the same number
    of parameters, and so the same memory, including the embedding and the head. ``uniform`` gives
    each the same number of decoder layers. ``balanced`` gives each about the same computation,
    which includes the head's product and attention over ``data.seq_len``, but not the embedding's
    look-up."""
    stage_boundaries: tuple[int, ...] = ()
    """The decoder layers, counted from 0, with which the stages after the first begin, e.g. [9, 18,
    27] for four stages. If given, ``partition`` is ignored. The embedding is in the first stage,
    the head is in the last."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What is split over the replicas: 0 nothing, 1 the optimizer's state."""

    @property
    def stages(self) -> int:
        return self.pipeline_stages

    @property
    def state_shards(self) -> tuple[bool, bool, bool]:
        return (self.zero_stage >= 1, False, False)

    def problems(self, key: str, run: RunSpec) -> Iterator[Problem]:
        yield from _precision(self.zero_stage, key, run)
        yield from deepspeed_config.problems(self, key)
        if self.zero_stage >= 2:
            yield Problem(
                f"{key}.zero_stage",
                self.zero_stage,
                "a pipeline sums gradients over its micro-batches on every replica, "
                "so they cannot be split",
                "give 0 or 1, or parallelism=zero",
            )
        if self.stage_boundaries:
            yield from self._boundary_problems(f"{key}.stage_boundaries", run)

    def _boundary_problems(self, key: str, run: RunSpec) -> Iterator[Problem]:
        given, model = list(self.stage_boundaries), run.model
        if len(given) != self.pipeline_stages - 1:
            yield Problem(
                key, given,
                f"{self.pipeline_stages} stages have {self.pipeline_stages - 1} boundaries",
                "give the decoder layer with which each stage after the first begins",
                also=(key.replace("stage_boundaries", "pipeline_stages"),),
            )  # fmt: skip
            return
        layers = {**model.config, **model.overrides}.get("num_hidden_layers")
        last = layers - 1 if isinstance(layers, int) else given[-1]
        rising = all(a < b for a, b in zip([0, *given], [*given, last + 1], strict=True))
        if not rising:
            yield Problem(
                key, given, "every stage must hold a decoder layer",
                f"give increasing numbers from 1 to {last}" if layers
                else "give increasing numbers from 1",
            )  # fmt: skip

    def engine(self, run: RunSpec, **parts: Any) -> TrainEngine:
        from easyllm.parallelism.pipeline import PipelineTrainEngine

        return PipelineTrainEngine(run, self, **parts)


@dataclass(frozen=True, kw_only=True)
class Zero(Parallelism):
    """Every rank is a replica, and the states of training are split over the replicas (ZeRO)."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """What is split: 0 nothing, 1 the optimizer's state, 2 gradients too, 3 weights too."""
    offload: Literal["optimizer", "parameters"] | None = None
    """What is kept in host memory instead of device memory. ``optimizer``: the optimizer's state,
    whose updates the CPU then computes (faster with ``training.optimizer.fused``). ``parameters``:
    the weights too, with stage 3."""

    @property
    def stages(self) -> int:
        return 1

    @property
    def state_shards(self) -> tuple[bool, bool, bool]:
        return (self.zero_stage >= 1, self.zero_stage >= 2, self.zero_stage >= 3)

    @property
    def offloads(self) -> tuple[bool, bool]:
        return (self.offload is not None, self.offload == "parameters")

    def problems(self, key: str, run: RunSpec) -> Iterator[Problem]:
        yield from _precision(self.zero_stage, key, run)
        yield from deepspeed_config.problems(self, key)
        if run.model.compile and self.zero_stage == 3:
            yield Problem(
                "model.compile", True,
                "weights that ZeRO gathers within a layer prevent the layer's compilation",
                f"give {key}.zero_stage=2 or model.compile=false", also=(f"{key}.zero_stage",),
            )  # fmt: skip
        if run.training.loss == "linear_cross_entropy" and self.zero_stage == 3:
            yield Problem(
                "training.loss", run.training.loss,
                "the loss needs the head's weight, which ZeRO gathers for the head alone",
                f"give {key}.zero_stage=2 or training.loss=cross_entropy",
                also=(f"{key}.zero_stage",),
            )  # fmt: skip
        least = 0 if self.offload is None else 1 if self.offload == "optimizer" else 3
        if self.zero_stage < least:
            yield Problem(
                f"{key}.offload", self.offload,
                f"zero_stage={self.zero_stage} does not split what would be kept elsewhere",
                f"give {key}.zero_stage={least}" + (", 2 or 3" if least == 1 else ""),
                also=(f"{key}.zero_stage",),
            )  # fmt: skip

    def engine(self, run: RunSpec, **parts: Any) -> TrainEngine:
        from easyllm.parallelism.zero import ZeroTrainEngine

        return ZeroTrainEngine(run, self, **parts)
