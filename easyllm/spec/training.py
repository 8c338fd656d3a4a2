"""The spec of training and of the export of the trained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from easyllm.spec.evaluation import TaskSpec
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
    """Copy each checkpoint into host memory and write it while training continues. Each node needs
    memory for one copy of the weights and optimizer state of its ranks. One checkpoint is written
    at a time. Training waits for the last one, and for one before stopping."""

    @property
    def seconds(self) -> float | None:
        """Seconds between checkpoints, where ``every`` is a time."""
        return Time.seconds(self.every) if isinstance(self.every, str) else None

    @property
    def steps(self) -> int | None:
        """Steps between checkpoints, where ``every`` is a number of steps."""
        return self.every if isinstance(self.every, int) else None


@dataclass(frozen=True, kw_only=True)
class ProfileSpec:
    start: Count = 10
    """The first step to profile, as ``metrics.jsonl`` counts steps. When a run is resumed after
    this step, nothing is profiled."""
    steps: Count = 3
    """Number of steps to profile."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSpec:
    fraction: Fraction = 0.0
    """Share of the documents held out of training for evaluation."""
    every: Count | None = None
    """Steps between evaluations; null evaluates at the end only."""
    max_rows: Count = 128
    """Most held-out rows to evaluate on."""
    tasks: dict[str, TaskSpec | None] = empty()
    """Tasks of lm-eval whose answers are chosen among given ones, as ``evaluation.tasks``. They run
    at the same steps, on the ranks and the weights of training; results are in
    ``metrics.jsonl``."""


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    steps: NonNegativeInt | None = None
    """Optimizer steps. Give this or ``epochs``."""
    epochs: PositiveFloat | None = None
    """Passes over the data. Give this or ``steps``."""
    max_runtime: Duration | None = None
    """Longest time for one start of training, counted from when its ranks are started: ``90m``,
    ``2h``, ``1d12h``, or a number of seconds. Training saves and ends with exit status 75 before a
    step and its checkpoint, if they took as long as the longest so far, would exceed this time. The
    same command resumes it, again with the full time. At least one step is made each time. Give a
    little less than the time limit of the cluster's job."""
    optimizer: Optimizer = component("easyllm.training.optimizers.AdamW")
    """What updates the weights, with its peak learning rate."""
    schedule: Schedule = component("easyllm.training.schedules.Cosine")
    """The learning rate of each step as a share of the peak."""
    adapter: Adapter | None = None
    """What is trained instead of the model's own weights, such as ``lora``. Checkpoints hold
    the adapter only; the base model is read from ``model.path`` each time."""
    freeze: dict[str, str] = empty()
    """Patterns of the parameters that are not trained, each under a name that you choose: globs
    such as ``model.layers.[0-7].*``, or regular expressions after ``re:``. A pattern must match a
    whole name."""
    router_aux_loss: NonNegativeFloat | None = None
    """The coefficient of the loss that keeps experts evenly used; 0 leaves it out. Null takes the
    model's own ``router_aux_loss_coef`` where transformers computes such a loss for its type, and
    otherwise 0. Held-out loss never includes it."""
    check_packing: bool = True
    """Before the first step of a run with packed rows, compare the logits of a document after
    another one in its row with those at the beginning of a row. A difference above rounding ends
    the run."""
    check_engine: bool | None = None
    """Compare loss and gradient norm of the first step with those of transformers' plain model on
    the same rows, in one process on the first device, which must hold the whole model. A difference
    above rounding ends the run before anything is saved. Null does it only with ``+smoke=cpu``."""
    loss: Literal["cross_entropy", "linear_cross_entropy"] = "cross_entropy"
    """The loss, by its name in torch. ``linear_cross_entropy`` computes the head and the loss
    together for some tokens at a time, so that the full logits, tokens times vocabulary, are never
    in memory; the backward pass computes them again. The result is the same except for rounding.
    It is much slower on a CPU."""
    deterministic: bool = True
    """On CUDA, use only kernels that give the same bits each time, torch's deterministic
    algorithms. Without them, the losses of a run that resumes after it was killed differ by
    rounding. False uses the faster backward pass of attention."""
    gradient_clipping: NonNegativeFloat = 1.0
    """Largest norm of the gradient over all parameters; 0 does not clip."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What happens at a step whose gradient is not finite. Its update is never made. ``stop``
    ends the run. ``skip`` continues with the next samples; ``metrics.jsonl`` marks the step as
    ``skipped``, and the stage's record counts these steps."""
    resume: Literal["exact", "weights", "never"] = "exact"
    """How a run resumes from its newest checkpoint. ``exact``: the losses are those of a run that
    was not interrupted. A checkpoint of another layout is resumed too, and its losses agree except
    for rounding. Where a setting that decides the losses has changed, the run is refused with a
    list of such settings. ``weights``: in that case, begin at step 0 with the checkpoint's weights
    and a fresh optimizer. ``never``: begin from scratch each time. What was trained
    before is archived, not removed."""
    checkpoint: CheckpointSpec = nested(CheckpointSpec)
    evaluate: EvaluateSpec = nested(EvaluateSpec)
    profile: ProfileSpec | None = None
    """Steps whose operations torch's profiler times one by one. The run's folder ``profile/``
    gets each rank's trace, for https://ui.perfetto.dev, and a table of the slowest operations.
    Profiled steps take longer."""
    trackers: dict[str, Tracker] = empty()
    """Where metrics are logged besides ``metrics.jsonl``, by name."""


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    checkpoint: Place | None = None
    """The checkpoint to convert; null takes the run's newest."""
    output: Place | None = None
    """The folder to write. Null takes a folder in the run's directory: ``export``, ``gguf`` for
    that format, or ``adapter`` for an adapter alone, so that a run can have all of them."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the exported weights; null keeps the checkpoint's."""
    format: Literal["safetensors", "gguf"] = "safetensors"
    """``safetensors`` writes a folder in Hugging Face's format. ``gguf`` writes one file with the
    model, the tokenizer and the chat template, which llama.cpp runs; it is supported for Llama,
    Mistral, Qwen2 and Qwen3, and for Qwen and Baichuan with ``layout=canonical``."""
    gguf_type: Literal["f32", "bf16", "f16", "q8_0"] | None = None
    """Type of the matrices in a GGUF file. ``q8_0`` has 8-bit numbers, with a scale for each 32 of
    them. Null keeps the checkpoint's type. Norms and biases are float32."""
    adapter: Literal["merged", "adapter"] = "merged"
    """How ``training.adapter`` is exported. ``merged`` adds it to the weights of its model, which
    gives a model like any other. ``adapter`` writes the folder that peft loads onto the model at
    ``model.path``."""
    layout: Literal["native", "canonical"] = "native"
    """``native`` keeps the names and the configuration of the model that was loaded.
    ``canonical`` writes Qwen as Qwen2, and Baichuan with rotary positions as Llama. They compute
    the same, and every engine runs them."""
    max_shard_gb: PositiveFloat = 5.0
    """Size of the largest safetensors file, in 10^9 bytes."""
