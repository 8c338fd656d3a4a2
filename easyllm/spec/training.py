"""The spec of training and of the export of what it made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from easyllm.spec.fields import component, empty, nested
from easyllm.spec.roles import Adapter, Optimizer, Schedule, Tracker
from easyllm.spec.types import (
    Count,
    Duration,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    Place,
    PositiveFloat,
    Time,
    TimeText,
)


@dataclass(frozen=True, kw_only=True)
class CheckpointSpec:
    every: Count | TimeText | None = "30m"
    """Steps between checkpoints, ``100``, or the time, ``30m``, ``2h``, after which the end of a
    step saves the next one; null saves at the end only."""
    keep: Count = 2
    """Newest checkpoints to keep."""
    keep_every: Count | None = None
    """Keep every checkpoint whose step is a multiple of this, too."""
    asynchronous: bool = False
    """Copy what is to be saved into host memory and write it while training goes on. It takes
    that memory: on each node once the weights and the optimizer's state of its ranks. One
    checkpoint at a time; the last one, and one before stopping, are waited for."""

    @property
    def seconds(self) -> float | None:
        """Between checkpoints, where ``every`` is a time."""
        return Time.seconds(self.every) if isinstance(self.every, str) else None

    @property
    def steps(self) -> int | None:
        """Between checkpoints, where ``every`` is a number of them."""
        return self.every if isinstance(self.every, int) else None


@dataclass(frozen=True, kw_only=True)
class ProfileSpec:
    start: Count = 10
    """The first step to profile, as ``metrics.jsonl`` counts them. A start of the run that
    goes on behind it profiles nothing."""
    steps: Count = 3
    """Steps to profile."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSpec:
    fraction: Fraction = 0.0
    """Share of the documents held out of training for evaluation."""
    every: Count | None = None
    """Steps between evaluations; null evaluates at the end only."""
    max_rows: Count = 128
    """Held-out rows to evaluate on at most."""


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    steps: NonNegativeInt | None = None
    """Optimizer steps. Give this or ``epochs``."""
    epochs: PositiveFloat | None = None
    """Passes over the data. Give this or ``steps``."""
    max_runtime: Duration | None = None
    """Time that one start of training may take, from when its ranks are started: ``90m``,
    ``2h``, ``1d12h``, or a number of seconds. Before a step and its saving would go over it, as
    long as the longest until then, training saves and ends with exit status 75; the same command
    goes on, with the same time anew. At least one step is made. Give a little less than
    the time limit of a job."""
    optimizer: Optimizer = component("easyllm.training.optimizers.AdamW")
    """What updates the weights, with its peak learning rate."""
    schedule: Schedule = component("easyllm.training.schedules.Cosine")
    """The learning rate of each step as a share of the peak."""
    adapter: Adapter | None = None
    """What is trained instead of the model's own weights, such as ``lora``. Checkpoints hold
    the adapter alone; the model under it is read from ``model.path`` each time."""
    freeze: dict[str, str] = empty()
    """Patterns, by names of your own, of the parameters that are not trained: globs such as
    ``model.layers.[0-7].*``, or regular expressions after ``re:``, that fit a whole name."""
    loss: Literal["cross_entropy", "linear_cross_entropy"] = "cross_entropy"
    """The loss by its name in torch. ``linear_cross_entropy`` takes the head with it, some
    tokens at a time, so that the logits, tokens times vocabulary, are never whole in memory;
    the backward pass computes them again. The same but for rounding; on a CPU much slower."""
    deterministic: bool = True
    """On CUDA, only kernels that give the same bits each time, torch's deterministic algorithms:
    without them a run that goes on after a kill has the same losses but for rounding. False takes
    the faster backward pass of attention."""
    gradient_clipping: NonNegativeFloat = 1.0
    """Largest norm of the gradient over all parameters; 0 does not clip."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What becomes of a step whose gradient is not finite. Its update is never made: ``stop``
    ends the run, ``skip`` goes on with the next samples; ``metrics.jsonl`` marks the step as
    ``skipped``, and the stage's record counts them."""
    resume: Literal["exact", "weights", "never"] = "exact"
    """How a run goes on from its newest checkpoint. ``exact``: the losses are those that would
    have followed; another layout of the same state is taken up too, and they agree but for
    rounding; where a setting that decides them has changed, the run is refused with a list.
    ``weights``: there, begin at step 0 with the checkpoint's weights and a fresh optimizer.
    ``never``: begin afresh each time. What was trained before is set aside, not removed."""
    checkpoint: CheckpointSpec = nested(CheckpointSpec)
    evaluate: EvaluateSpec = nested(EvaluateSpec)
    profile: ProfileSpec | None = None
    """Steps whose operations are timed one by one by torch's profiler. The run's ``profile/``
    gets each rank's trace, for https://ui.perfetto.dev, and a table of the slowest; profiled
    steps take longer."""
    trackers: dict[str, Tracker] = empty()
    """Where metrics go besides ``metrics.jsonl``, by name."""


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    checkpoint: Place | None = None
    """The checkpoint to convert; null takes the run's newest."""
    output: Place | None = None
    """The folder to write. Null is one of the run's directory: ``export``, ``gguf`` for that
    format, or ``adapter`` for an adapter alone, so that a run may have each."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the exported weights; null keeps the checkpoint's."""
    format: Literal["safetensors", "gguf"] = "safetensors"
    """``safetensors`` writes a folder in Hugging Face's format; ``gguf`` one file with model,
    tokenizer and chat template, which llama.cpp runs: of Llama, Mistral, Qwen2 and
    Qwen3, and of Qwen and Baichuan with ``layout=canonical``."""
    gguf_type: Literal["f32", "bf16", "f16", "q8_0"] | None = None
    """Type of the matrices in a GGUF file, ``q8_0`` with a scale for 32 numbers of 8 bits each;
    null keeps the checkpoint's. Norms and biases are float32."""
    adapter: Literal["merged", "adapter"] = "merged"
    """What ``training.adapter`` is exported as: added to the weights of its model, a model like
    any other; or the folder that peft puts on the model at ``model.path``."""
    layout: Literal["native", "canonical"] = "native"
    """``native`` keeps the names and the configuration of the model that was loaded;
    ``canonical`` writes Qwen as Qwen2 and Baichuan with rotary positions as Llama, which compute
    the same and which every engine runs."""
    max_shard_gb: PositiveFloat = 5.0
    """Largest safetensors file."""
