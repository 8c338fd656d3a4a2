"""The run spec: one typed tree that holds everything a run needs to know.

Defaults live here and nowhere else; the YAML groups say only what they change.
A field whose type is a component role takes the class named by ``_target_``, or by
``component(...)`` where none is named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from easyllm.spec.roles import (
    Adapter,
    DataEngine,
    Encoder,
    Family,
    InferenceEngine,
    Launcher,
    Optimizer,
    Parallelism,
    Reader,
    Schedule,
    Template,
    Tokenizer,
    Tracker,
)
from easyllm.spec.types import (
    Count,
    DType,
    Duration,
    Fraction,
    ModelPath,
    NonNegativeFloat,
    NonNegativeInt,
    Place,
    Port,
    PositiveFloat,
)

STAGES = ("tokenize", "shuffle", "repartition", "inspect", "train", "export", "infer", "serve")
"""The stages there are, in the order in which they feed each other."""


def component(target: str) -> Any:
    """A component field whose class is ``target`` unless the spec names another."""
    return field(metadata={"target": target})


def nested(cls: type) -> Any:
    """A field holding another dataclass of the spec, by default in its default state."""
    return field(default_factory=cls)


def empty() -> Any:
    """A map by name, empty by default."""
    return field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ComponentsSpec:
    allow: tuple[str, ...] = ()
    """Module prefixes besides ``easyllm`` from which a ``_target_`` may come."""
    path: tuple[Place, ...] = ()
    """Folders from which those modules are imported; ``--config-dir`` is added by itself."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    path: ModelPath | None = None
    """A folder in Hugging Face's format, a hub id, a ``.gguf`` file, or
    ``package:NAME/FILE`` for a file that an installed Python package carries."""
    init: Literal["pretrained", "random"] = "pretrained"
    """Start from the weights at ``path``, or from random ones drawn with ``seed``."""
    dtype: DType = "bfloat16"
    """The type weights are held in during training."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = "sdpa"
    """The attention implementation, by its name in transformers. ``flash_attention_2`` and
    ``flex_attention`` need a CUDA device."""
    compile: bool = False
    """Compile each decoder layer for training by ``torch.compile``, but for its attention."""
    family: Family | None = None
    """The model family; read from ``model_type`` where null."""
    config: dict[str, Any] = empty()
    """The published Hugging Face configuration, so that a spec can be checked without
    the files. Where ``path`` is given, its own ``config.json`` must agree."""
    overrides: dict[str, Any] = empty()
    """Laid over the Hugging Face configuration, e.g. ``num_hidden_layers: 4``."""
    cache: Place | None = None
    """Folder for models converted from another format; ``runs/models`` when null."""


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    sources: dict[str, Reader] = empty()
    """The texts, by name."""
    dir: Place | None = None
    """The token store. By default ``runs/stores/<address>``, addressed by what it holds,
    so that runs with the same data share it."""
    cache: Place | None = None
    """Folder on this node's own disk for the uncompressed map of the store and the plans of
    how its documents lie in rows; by default inside the store."""
    tokenizer: Tokenizer = component("easyllm.data.tokenizers.Pretrained")
    encoder: Encoder | None = None
    """The engine that turns texts into ids. Null takes the fastest that is installed and gives
    exactly the ids of Hugging Face's: gigatoken, quicktok, else Hugging Face's own. Never
    changes the result."""
    template: Template = component("easyllm.data.templates.TokenizerTemplate")
    seq_len: Count = 2048
    """Tokens a row."""
    packing: Literal["none", "concat", "best_fit"] = "concat"
    """``best_fit`` fits whole documents into rows, full to 99.9 % where lengths vary, and
    cuts only those longer than a row; ``concat`` joins the documents and cuts the stream into
    rows; ``none`` gives each document rows of its own, padded. In all of them positions
    restart at each document and attention stays within it."""
    long_conversations: Literal["cut_at_turns", "cut", "drop"] = "cut_at_turns"
    """What becomes of a conversation longer than a row. ``cut_at_turns`` gives each row as many
    whole turns as it holds: a row begins with what follows an answer, a user's turn mostly, and
    only a question that with its answer is longer than a row is cut within; rows after the
    first are without the system's words. ``cut`` cuts it after each ``seq_len`` tokens. ``drop``
    leaves it out. With ``concat``, which cuts the stream wherever a row ends, ``cut_at_turns``
    is ``cut``. Texts are always cut."""
    partitions: Count = 4
    """Parts the store is dealt into; each holds a share of every source."""
    compression: Literal["zstd", "gzip", "snappy", "none"] = "zstd"
    """Codec of the store's parquet files."""
    rows_per_file: Count = 50_000
    """Documents a parquet file of the store holds at most."""
    limit: Count | None = None
    """Documents to read of each source at most; null reads all."""
    max_rejects: NonNegativeInt = 100
    """Bad records to leave out at most; with more, tokenizing stops. Each is written to
    ``tokens/rejected.jsonl`` in the store."""
    engine: DataEngine = component("easyllm.data.engines.Local")
    """What does the work of tokenize, shuffle and repartition: ``local``, the processes of this
    machine, or ``spark``. Never changes the result."""
    workers: Count | None = None
    """Processes of the local engine; null takes one for each core. Never changes the result."""
    memory_gb: PositiveFloat = 4.0
    """Memory, in 10^9 bytes, that all processes of the local engine's shuffle take together,
    whatever the size of the store. Never changes the result."""


@dataclass(frozen=True, kw_only=True)
class HardwareSpec:
    nodes: Count = 1
    devices_per_node: Count = 1
    device: Literal["cpu", "cuda"] = "cuda"
    memory_gb: PositiveFloat | None = None
    """Memory of one device; a layout whose model and optimizer states exceed it is refused."""
    peak_tflops: PositiveFloat | None = None
    """Peak of one device in the training dtype; MFU is a share of it and is left out when null."""
    launcher: Launcher = component("easyllm.launchers.auto.Auto")
    """How ranks are started; by default what fits one machine, or the cluster that the run
    is started on."""
    timeout_s: PositiveFloat = 1800.0
    """Seconds a training step, the reading of a store, of weights or of a batch to evaluate, or
    a save may take. What takes longer counts as hung: every rank writes its stacks into its log,
    and the run fails naming the ranks that did not arrive where the others waited."""

    @property
    def ranks(self) -> int:
        return self.nodes * self.devices_per_node


@dataclass(frozen=True, kw_only=True)
class CheckpointSpec:
    every: Count | None = None
    """Steps between checkpoints; null saves at the end only."""
    keep: Count = 2
    """Newest checkpoints to keep."""
    keep_every: Count | None = None
    """Keep every checkpoint whose step is a multiple of this, too."""
    asynchronous: bool = False
    """Copy what is to be saved into host memory and write it while training goes on. It takes
    that memory: on each node once the weights and the optimizer's state of its ranks. One
    checkpoint at a time; the last one, and one before stopping, are waited for."""


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
    budget: Duration | None = None
    """Time that one start of training may take, from when its ranks are started: ``90m``,
    ``2h``, ``1d12h``, or a number of seconds. Before a step and its saving would go over it, as
    long as the longest until then, training saves and ends with exit status 75; the same command
    goes on, with the same budget anew. At least one step is made. Give a little less than
    the time limit of a job."""
    optimizer: Optimizer = component("easyllm.training.optimizers.AdamW")
    schedule: Schedule = component("easyllm.training.schedules.Cosine")
    adapter: Adapter | None = None
    """What is trained instead of the model's own weights, such as ``lora``. Checkpoints hold
    the adapter alone; the model under it is read from ``model.path`` each time."""
    freeze: dict[str, str] = empty()
    """Patterns, by names of your own, of the parameters that are not trained: globs such as
    ``model.layers.[0-7].*``, or regular expressions after ``re:``, that fit a whole name."""
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
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the exported weights; null keeps the checkpoint's."""
    adapter: Literal["merged", "adapter"] = "merged"
    """What ``training.adapter`` is exported as: added to the weights of its model, a model like
    any other; or the folder that peft puts on the model at ``model.path``."""
    layout: Literal["native", "modern"] = "native"
    """``native`` keeps the names and the configuration of the model that was loaded;
    ``modern`` writes Qwen as Qwen2 and Baichuan with rotary positions as Llama, which compute
    the same and which every engine runs."""
    max_shard_gb: PositiveFloat = 5.0
    """Largest safetensors file."""


@dataclass(frozen=True, kw_only=True)
class SamplingSpec:
    """How an answer is drawn; the names are those of vLLM's ``SamplingParams``."""

    max_tokens: Count = 128
    """Tokens to generate at most."""
    min_tokens: NonNegativeInt = 0
    """Tokens before which no end-of-sequence token is drawn."""
    temperature: NonNegativeFloat = 0.0
    """0 takes the likeliest token."""
    top_p: Fraction = 1.0
    """Draw from the likeliest tokens whose probabilities add up to this."""
    top_k: NonNegativeInt = 0
    """Candidates to sample from; 0 takes all."""
    min_p: Fraction = 0.0
    """Drop tokens less likely than this share of the likeliest one's probability."""
    repetition_penalty: PositiveFloat = 1.0
    """Divides the scores of tokens that the prompt or the answer has already."""
    presence_penalty: float = 0.0
    """Taken from the scores of tokens that the answer has already."""
    frequency_penalty: float = 0.0
    """The same, once for each time the answer has the token."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they are not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end an answer, besides the model's own."""
    ignore_eos: bool = False
    """Go on after an end-of-sequence token, for measurements."""
    logprobs: NonNegativeInt | None = None
    """Likeliest tokens whose log-probabilities are told beside each token's own."""
    n: Count = 1
    """Answers to each prompt."""
    seed: NonNegativeInt | None = None
    """Seed of the sampling; null takes the run's."""


@dataclass(frozen=True, kw_only=True)
class InferenceSpec:
    engine: InferenceEngine = component("easyllm.inference.engines.Transformers")
    model: ModelPath | None = None
    """A folder in Hugging Face's format or a hub id; null takes the run's export, or
    ``model.path`` where the run has none."""
    prompts: Place | dict[str, str] = empty()
    """Prompts by name, or a file: ``.jsonl`` or ``.parquet`` with ``prompt`` or ``messages``
    and perhaps ``id``, anything else one prompt a line."""
    chat: bool = False
    """Put each prompt into the chat template as a user's turn; ``messages`` always are."""
    output: Place | None = None
    """The file of results, ``.jsonl`` or ``.parquet``; null writes
    ``inference/results.jsonl`` in the run."""
    batch_size: Count = 32
    """Answers generated together at most, by batch inference as by the server."""
    sampling: SamplingSpec = nested(SamplingSpec)


@dataclass(frozen=True, kw_only=True)
class ServingSpec:
    """The API server. Keys of clients come from ``api_key_file`` and from the environment's
    ``EASYLLM_API_KEY``; with neither every client of this machine may ask."""

    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for all that reach this machine."""
    port: Port = 8000
    model_name: str | None = None
    """The model's name in ``/v1/models`` and answers; null takes its folder's or hub id."""
    api_key_file: Place | None = None
    """A file of keys, one a line; ``#`` begins a comment."""
    insecure: bool = False
    """Listen beyond this machine without any key."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may ask from a browser, such as https://chat.example.org."""
    overflow: Literal["refuse", "drop_oldest_turns"] = "refuse"
    """What becomes of a conversation longer than the context: an error that says both
    lengths, or its oldest turns are left out, a system message and the last turn never."""
    max_queue: Count = 256
    """Answers that may wait for their turn beside those being generated; more get 429."""
    max_tokens: Count | None = None
    """Largest ``max_tokens`` a client may ask for; null allows the model's context."""
    max_prompt_tokens: Count | None = None
    """Longest prompt; null allows the model's context."""
    max_n: Count = 16
    """Answers a prompt at most."""
    max_batch: Count = 64
    """Prompts of one request at most."""
    max_body_mb: PositiveFloat = 4.0
    """Largest body of a request, in 10^6 bytes."""
    body_seconds: PositiveFloat = 30.0
    """Seconds a client may take to send a request's body."""
    grace_seconds: NonNegativeFloat = 30.0
    """Seconds that answers under way get once the server is asked to stop."""
    log_prompts: bool = False
    """Put prompts and answers into the access log."""


@dataclass(frozen=True, kw_only=True)
class SmokeSpec:
    """Limits to which a run is shrunk so that this machine can carry it."""

    max_degree: Count = 2
    """Pipeline stages and replicas at most."""
    layers: Count = 4
    hidden_size: Count = 64
    heads: Count = 4
    intermediate_size: Count = 128
    vocab_size: Count = 512
    seq_len: Count = 128
    global_batch_size: Count = 8
    steps: Count = 4
    documents: Count = 200
    """Documents read of each source at most."""
    new_tokens: Count = 16


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    name: str = "run"
    seed: NonNegativeInt = 42
    """The one seed: weights, shuffles, the order of samples, sampling."""
    run_dir: Place | None = None
    """Where all of the run lands; ``runs/<name>-<hash of the spec>`` when null."""
    stages: tuple[str, ...] = ()
    """The stages to run, in order."""
    components: ComponentsSpec = nested(ComponentsSpec)
    model: ModelSpec = nested(ModelSpec)
    data: DataSpec = nested(DataSpec)
    parallelism: Parallelism = component("easyllm.parallelism.layouts.Zero")
    hardware: HardwareSpec = nested(HardwareSpec)
    training: TrainingSpec = nested(TrainingSpec)
    export: ExportSpec = nested(ExportSpec)
    inference: InferenceSpec = nested(InferenceSpec)
    serving: ServingSpec = nested(ServingSpec)
    smoke: SmokeSpec | None = None
    """Set by ``+smoke=cpu``; null in a resolved spec, which is already shrunk."""
