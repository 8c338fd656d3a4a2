"""The run spec: one typed tree that holds every setting of a run.

All defaults are here; the YAML groups give only what they change.
A field whose type is a component role takes the class named by ``_target_``, or by
``component(...)`` where none is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from easyllm.spec.evaluation import EvaluationSpec, VerifySpec
from easyllm.spec.fields import component, empty, nested
from easyllm.spec.inference import InferenceSpec, ServingSpec
from easyllm.spec.roles import (
    DataEngine,
    Encoder,
    Family,
    Launcher,
    Parallelism,
    Reader,
    Template,
    Tokenizer,
)
from easyllm.spec.training import ExportSpec, TrainingSpec
from easyllm.spec.types import (
    Count,
    DType,
    ModelPath,
    NonNegativeInt,
    Place,
    PositiveFloat,
    Range,
)

STAGES = (
    "tokenize", "shuffle", "repartition", "inspect", "train", "export", "verify", "evaluate",
    "infer", "serve",
)  # fmt: skip
"""The stages there are, in the order in which they feed each other."""


@dataclass(frozen=True, kw_only=True)
class ComponentsSpec:
    allow: tuple[str, ...] = ()
    """Module prefixes besides ``easyllm`` from which a ``_target_`` may come."""
    path: tuple[Place, ...] = ()
    """Folders from which those modules are imported; ``--config-dir`` is added automatically."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    path: ModelPath | None = None
    """A folder in Hugging Face's format, a hub id, a ``.gguf`` file, or
    ``package:NAME/FILE`` for a file that an installed Python package carries."""
    revision: str | None = None
    """Branch, tag or commit of a hub id. Null takes the commit that the hub's main branch is at
    when the run begins. ``run.yaml`` records it, and the run keeps it when main changes."""
    init: Literal["pretrained", "random"] = "pretrained"
    """Start from the weights at ``path``, or from random ones drawn with ``seed``."""
    dtype: DType = "bfloat16"
    """The type weights are held in during training."""
    attention: Literal["sdpa", "eager", "varlen", "flex_attention", "flash_attention_2"] = "sdpa"
    """The attention implementation, by its name in transformers, or ``varlen``, which is torch's
    own flash attention over documents of any lengths. The last three need a CUDA device.
    ``varlen`` and ``flash_attention_2`` need 16-bit numbers."""
    compile: bool = False
    """Compile each decoder layer, except for its attention, and the loss with ``torch.compile``
    for training."""
    family: Family | None = None
    """The model family; null derives it from ``model_type``."""
    config: dict[str, Any] = empty()
    """The published Hugging Face configuration, so that a spec can be checked without
    the files. Where ``path`` is given, its own ``config.json`` must agree."""
    overrides: dict[str, Any] = empty()
    """Values that replace those of the Hugging Face configuration, e.g.
    ``num_hidden_layers: 4``."""
    cache: Place | None = None
    """Folder for models converted from another format; ``runs/models`` when null."""


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    sources: dict[str, Reader] = empty()
    """The texts, by name."""
    dir: Place | None = None
    """The folder of the token store. By default ``runs/stores/<address>``, where the address is
    computed from what the store holds, so that runs with the same data share it."""
    cache: Place | None = None
    """Folder on this node's own disk for the uncompressed, memory-mapped copy of the store and for
    the plans of how its documents are placed in rows; by default inside the store."""
    tokenizer: Tokenizer = component("easyllm.data.tokenizers.components.Pretrained")
    """The tokenizer: a published one, by default the model's own, or one trained on the sources."""
    encoder: Encoder | None = None
    """The engine that turns texts into ids. Null takes the fastest one that is installed and gives
    exactly the ids of Hugging Face's tokenizers: gigatoken, quicktok, or else Hugging Face's own.
    It never changes the result."""
    template: Template = component("easyllm.data.chat.templates.TokenizerTemplate")
    """How a conversation becomes tokens, and which of them are trained."""
    seq_len: Count = 2048
    """Tokens in a row."""
    packing: Literal["none", "concat", "best_fit"] = "concat"
    """How documents are placed in rows. ``best_fit`` fits whole documents into rows, which are
    99.9 % full where lengths vary, and cuts only documents longer than a row. ``concat`` joins the
    documents and cuts the stream into rows. ``none`` gives each document its own rows, padded. In
    all of them positions restart at each document and attention stays within it."""
    long_conversations: Literal["cut_at_turns", "cut", "drop"] = "cut_at_turns"
    """What happens to a conversation longer than a row. ``cut_at_turns`` gives each row as many
    whole turns as fit: a row begins with what follows an answer, mostly a user's turn, and rows
    after the first do not have the system message. A turn is cut only where a question and its
    answer together are longer than a row. ``cut`` cuts the conversation after each ``seq_len``
    tokens. ``drop`` leaves it out. With ``concat``, which cuts the stream wherever a row ends,
    ``cut_at_turns`` is the same as ``cut``. Texts are always cut."""
    partitions: Count = 4
    """Parts that the store is divided into; each holds a share of every source."""
    compression: Literal["zstd", "gzip", "snappy", "none"] = "zstd"
    """Codec of the store's parquet files."""
    rows_per_file: Count = 50_000
    """Most documents in a parquet file of the store."""
    max_documents: Count | None = None
    """Most documents to read from each source; null reads all."""
    max_bad_records: NonNegativeInt = 100
    """Most bad records to leave out; with more, tokenizing stops. Each is written to
    ``tokens/rejected.jsonl`` in the store."""
    engine: DataEngine = component("easyllm.data.executors.components.Local")
    """What does the work of tokenize, shuffle and repartition: ``local``, the processes of this
    machine, or ``spark``. It never changes the result."""
    workers: Annotated[int, Range(low=1, high=1024)] | None = None
    """Processes of the local engine; null takes one for each core. It never changes the result."""
    memory_gb: PositiveFloat = 4.0
    """Memory, in 10^9 bytes, that all processes of the local engine's shuffle use together,
    whatever the size of the store. It never changes the result."""


@dataclass(frozen=True, kw_only=True)
class HardwareSpec:
    nodes: Annotated[int, Range(low=1, high=65536)] = 1
    """Number of machines."""
    devices_per_node: Annotated[int, Range(low=1, high=1024)] = 1
    """Ranks on each machine, one for each device."""
    device: Literal["cpu", "cuda"] = "cuda"
    """What training and inference run on."""
    memory_gb: PositiveFloat | None = None
    """Memory of one device; a layout whose model and optimizer states exceed it is refused."""
    peak_tflops: PositiveFloat | None = None
    """Peak TFLOPS of one device in the training dtype. MFU is a share of it, and is left out when
    this is null."""
    launcher: Launcher = component("easyllm.launchers.auto.Auto")
    """How ranks are started; by default what fits one machine, or the cluster that the run
    is started on."""
    timeout_s: PositiveFloat = 1800.0
    """Longest time, in seconds, for a training step, for a part of longer work such as reading a
    layer or writing a file, and for ranks to wait for each other. A rank that takes longer counts
    as hung: every rank writes its stacks into its log, and the run fails with the names of the
    ranks that did not arrive where the others waited."""

    @property
    def ranks(self) -> int:
        return self.nodes * self.devices_per_node


@dataclass(frozen=True, kw_only=True)
class SmokeSpec:
    """Limits to which a run is reduced so that it fits on this machine."""

    max_degree: Count = 2
    """Most pipeline stages, and most replicas."""
    layers: Count = 4
    """Most decoder layers."""
    hidden_size: Count = 64
    """Width of the model, rounded down to a multiple of its heads."""
    heads: Count = 4
    """Most attention heads."""
    intermediate_size: Count = 128
    """Width of the feed-forward layers."""
    vocab_size: Count = 512
    """Tokens of the vocabulary."""
    seq_len: Count = 128
    """Most tokens in a row."""
    global_batch_size: Count = 8
    """Most rows in one optimizer step."""
    steps: Count = 4
    """Most optimizer steps."""
    documents: Count = 200
    """Most documents read from each source."""
    new_tokens: Count = 16
    """Most tokens in an answer."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    name: str = "run"
    """The run's name; the name of its directory begins with it."""
    seed: NonNegativeInt = 42
    """The one seed of the run: for initial weights, shuffles, the order of samples, and
    sampling."""
    run_dir: Place | None = None
    """The folder of all the run's files; ``runs/<name>-<hash of the spec>`` when null."""
    stages: tuple[str, ...] = ()
    """The stages to run, in order."""
    components: ComponentsSpec = nested(ComponentsSpec)
    model: ModelSpec = nested(ModelSpec)
    data: DataSpec = nested(DataSpec)
    parallelism: Parallelism = component("easyllm.parallelism.layouts.Zero")
    """How training is laid out over the ranks: ``zero`` or ``pipeline``."""
    hardware: HardwareSpec = nested(HardwareSpec)
    training: TrainingSpec = nested(TrainingSpec)
    export: ExportSpec = nested(ExportSpec)
    verify: VerifySpec = nested(VerifySpec)
    evaluation: EvaluationSpec = nested(EvaluationSpec)
    inference: InferenceSpec = nested(InferenceSpec)
    serving: ServingSpec = nested(ServingSpec)
    smoke: SmokeSpec | None = None
    """Set by ``+smoke=cpu``; null in a resolved spec, which is already reduced."""
