"""The run spec: one typed tree that holds everything a run needs to know.

Defaults live here and nowhere else; the YAML groups say only what they change.
A field whose type is a component role takes the class named by ``_target_``, or by
``component(...)`` where none is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

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

STAGES = ("tokenize", "shuffle", "repartition", "inspect", "train", "export", "infer", "serve")
"""The stages there are, in the order in which they feed each other."""


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
    revision: str | None = None
    """Branch, tag or commit of a hub id. Null takes the commit that the hub's main branch is at
    when the run begins; ``run.yaml`` names it, and the run keeps it when main moves on."""
    init: Literal["pretrained", "random"] = "pretrained"
    """Start from the weights at ``path``, or from random ones drawn with ``seed``."""
    dtype: DType = "bfloat16"
    """The type weights are held in during training."""
    attention: Literal["sdpa", "eager", "varlen", "flex_attention", "flash_attention_2"] = "sdpa"
    """The attention implementation, by its name in transformers, or ``varlen``, torch's own
    flash attention over documents of any lengths. The last three need a CUDA device, and
    ``varlen`` and ``flash_attention_2`` 16-bit numbers."""
    compile: bool = False
    """Compile for training by ``torch.compile``: each decoder layer but for its attention, and
    the loss."""
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
    tokenizer: Tokenizer = component("easyllm.data.tokenizers.components.Pretrained")
    """The tokenizer: a published one, by default the model's own, or one trained on the sources."""
    encoder: Encoder | None = None
    """The engine that turns texts into ids. Null takes the fastest that is installed and gives
    exactly the ids of Hugging Face's: gigatoken, quicktok, else Hugging Face's own. Never
    changes the result."""
    template: Template = component("easyllm.data.chat.templates.TokenizerTemplate")
    """How a conversation becomes tokens, and which of them are trained."""
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
    max_documents: Count | None = None
    """Documents to read of each source at most; null reads all."""
    max_bad_records: NonNegativeInt = 100
    """Bad records to leave out at most; with more, tokenizing stops. Each is written to
    ``tokens/rejected.jsonl`` in the store."""
    engine: DataEngine = component("easyllm.data.executors.components.Local")
    """What does the work of tokenize, shuffle and repartition: ``local``, the processes of this
    machine, or ``spark``. Never changes the result."""
    workers: Annotated[int, Range(low=1, high=1024)] | None = None
    """Processes of the local engine; null takes one for each core. Never changes the result."""
    memory_gb: PositiveFloat = 4.0
    """Memory, in 10^9 bytes, that all processes of the local engine's shuffle take together,
    whatever the size of the store. Never changes the result."""


@dataclass(frozen=True, kw_only=True)
class HardwareSpec:
    nodes: Annotated[int, Range(low=1, high=65536)] = 1
    """Machines."""
    devices_per_node: Annotated[int, Range(low=1, high=1024)] = 1
    """Ranks on each machine, one for each device."""
    device: Literal["cpu", "cuda"] = "cuda"
    """What training and inference run on."""
    memory_gb: PositiveFloat | None = None
    """Memory of one device; a layout whose model and optimizer states exceed it is refused."""
    peak_tflops: PositiveFloat | None = None
    """Peak of one device in the training dtype; MFU is a share of it and is left out when null."""
    launcher: Launcher = component("easyllm.launchers.auto.Auto")
    """How ranks are started; by default what fits one machine, or the cluster that the run
    is started on."""
    timeout_s: PositiveFloat = 1800.0
    """Seconds that a training step, or a part of longer work such as a layer to read or a file to
    write, may take, and that ranks wait for each other. What takes longer counts as hung: every
    rank writes its stacks into its log, and the run fails naming the ranks that did not arrive
    where the others waited."""

    @property
    def ranks(self) -> int:
        return self.nodes * self.devices_per_node


@dataclass(frozen=True, kw_only=True)
class SmokeSpec:
    """Limits to which a run is shrunk so that this machine can carry it."""

    max_degree: Count = 2
    """Pipeline stages and replicas at most."""
    layers: Count = 4
    """Decoder layers at most."""
    hidden_size: Count = 64
    """Width of the model, rounded down to a multiple of its heads."""
    heads: Count = 4
    """Attention heads at most."""
    intermediate_size: Count = 128
    """Width of the feed-forward layers."""
    vocab_size: Count = 512
    """Tokens of the vocabulary."""
    seq_len: Count = 128
    """Tokens a row at most."""
    global_batch_size: Count = 8
    """Rows of one optimizer step at most."""
    steps: Count = 4
    """Optimizer steps at most."""
    documents: Count = 200
    """Documents read of each source at most."""
    new_tokens: Count = 16
    """Tokens of an answer at most."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    name: str = "run"
    """The run's name, with which the name of its directory begins."""
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
    """How training is laid out over the ranks: ``zero`` or ``pipeline``."""
    hardware: HardwareSpec = nested(HardwareSpec)
    training: TrainingSpec = nested(TrainingSpec)
    export: ExportSpec = nested(ExportSpec)
    inference: InferenceSpec = nested(InferenceSpec)
    serving: ServingSpec = nested(ServingSpec)
    smoke: SmokeSpec | None = None
    """Set by ``+smoke=cpu``; null in a resolved spec, which is already shrunk."""
