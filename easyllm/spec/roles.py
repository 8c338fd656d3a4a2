"""The roles a component can take: what stands behind a ``_target_`` in a spec.

A component is a frozen dataclass whose fields are its configuration. Its module
imports the standard library only (its *light face*); what it needs of torch,
transformers, pyarrow and the like it imports inside the methods that do the work.
Each role below is an abstract base; concrete components live in the rooms above
and may live outside the package (``components.allow``).
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from easyllm.spec.problems import Problem
from easyllm.spec.types import Count, NonNegativeFloat, PositiveFloat

if TYPE_CHECKING:
    from easyllm.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class Component(abc.ABC):  # noqa: B024  (the roles below have the abstract methods)
    """Base of every role."""

    requires: ClassVar[Mapping[str, str]] = {}
    """Optional packages it imports, with the extra of easyllm that installs each."""

    def problems(self, key: str, run: RunSpec) -> Iterator[Problem]:
        """What is wrong with this component in this run; no I/O.

        ``key`` is the dotted key at which the component stands.
        """
        return iter(())

    def lacking(self, key: str, run: RunSpec) -> Iterator[Problem]:
        """What this machine lacks that the component needs in this run's stages.

        Asked before anything starts; may read small files and ask programs for their version.
        """
        return iter(())


Message = Mapping[str, Any]
"""``role`` (system, user, assistant or tool) and ``content``; an assistant's ``tool_calls``,
and on the first message the ``tools`` it may call, as chat templates take them."""

Document = str | Sequence[Message]
"""A text, or a conversation."""


@dataclass(frozen=True)
class Record:
    """A document, and the line or row of its file from 1 at which it begins."""

    line: int
    document: Document


@dataclass(frozen=True)
class Rejected:
    """A record that cannot be used: its line or row from 1, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class Part:
    """A range of a file's bytes that holds whole records, to be read by itself."""

    file: Path
    start: int
    end: int
    line: int
    """Number of the first line, from 1."""

    def __str__(self) -> str:
        return str(self.file)


File = Path | str | Part
"""A local file, a URL that fsspec opens, or a part of a local file."""


@dataclass(frozen=True, kw_only=True)
class Reader(Component):
    """Turns files into documents."""

    weight: PositiveFloat = 1.0
    """How often a document of this source is seen in an epoch; 2 is twice, 0.5 every other one."""

    @abc.abstractmethod
    def files(self) -> Sequence[Path | str]:
        """The local files or URLs to read, sorted. Raises FileNotFoundError naming what is
        missing."""

    @abc.abstractmethod
    def documents(self, file: Any) -> Iterator[Document | Record | Rejected]:
        """The documents of one of ``files()``, or of one of its ``parts()``, in order.

        A bad record is given as ``Rejected``, and the rest goes on. Documents that are not in
        a ``Record`` are counted from 1.
        """

    def parts(self, file: Path | str, size: int, rows: int) -> Iterator[Part] | None:
        """The file cut into ranges of about ``size`` bytes and at most ``rows`` documents,
        which several processes can read at once; None where it must be read from its
        beginning."""
        return None


@dataclass(frozen=True, kw_only=True)
class Tokenizer(Component):
    """Where the tokenizer comes from."""

    @abc.abstractmethod
    def label(self, run: RunSpec) -> str:
        """A short name, used in the names of the store's folders."""

    @abc.abstractmethod
    def files(self, run: RunSpec) -> list[Path]:
        """Local files its identity depends on, the sources' not counted."""

    @abc.abstractmethod
    def make(self, run: RunSpec, folder: Path) -> None:
        """Write the tokenizer into ``folder`` in Hugging Face's format."""


@dataclass(frozen=True, kw_only=True)
class Encoder(Component):
    """The engine that turns texts into token ids.

    Its ids are those of Hugging Face's tokenizers, or it is not used: it is compared with
    them on texts that are hard to get right, on every token of the vocabulary and on the first
    documents of each source. An engine changes how fast a store is made, never what it holds.
    """

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """Its name and version."""

    def prepare(self, folder: Path) -> None:
        """Write what ``load`` needs beside ``folder/tokenizer.json``, once a tokenizer.

        That file is the tokenizer as transformers loaded it. Raises UserError where the engine
        cannot take it.
        """

    @abc.abstractmethod
    def load(self, folder: Path) -> Callable[[list[str]], tuple[Any, Any]]:
        """A function from texts to numpy arrays: their ids, int32 [tokens], laid end to end,
        and the offsets, int64 [texts + 1], at which each text's begin.

        No token is added, and names of special tokens in a text are words. It runs on one
        thread: processes are the parallelism. Raises UserError as ``prepare`` does.
        """


@dataclass(frozen=True, kw_only=True)
class Template(Component):
    """How a conversation becomes tokens, and which of them are trained."""

    @abc.abstractmethod
    def encode(self, tokenizer: Any, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Token ids and, for each, whether it is trained: the assistant's words and end of turn.

        Raises ``easyllm.errors.BadRecord`` for a conversation that it cannot express.
        """

    @abc.abstractmethod
    def prompt(self, tokenizer: Any, messages: Sequence[Message]) -> list[int]:
        """Token ids after which the assistant's next turn begins."""

    def end_of_turn(self, tokenizer: Any) -> int | None:
        """The id of the special token that ends the assistant's turn and is trained with it;
        None where none does. Raises as ``encode`` does."""
        question = {"role": "user", "content": "Is it?"}
        ids, trained = self.encode(tokenizer, [question, {"role": "assistant", "content": "Yes."}])
        last = [token for token, train in zip(ids, trained, strict=True) if train][-1]
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        return last if last in special else None

    def chat_template(self, tokenizer: Any) -> str | None:
        """The same as Jinja text, which the store's and the exported tokenizer carry; None
        keeps the tokenizer's own."""
        return None


@dataclass(frozen=True, kw_only=True)
class DataEngine(Component):
    """What does the work of the data stages, on this machine or on many.

    It never changes what they make. Its processes, wherever they run, must see the sources
    and the token store under the same paths.
    """

    @abc.abstractmethod
    def open(self, run: RunSpec, scratch: Path) -> contextlib.AbstractContextManager[Any]:
        """Start it for one stage and stop it when the block ends; gives an
        ``easyllm.data.pool.Pool``.

        ``scratch`` is an empty folder beside the store, which is removed afterwards.
        """


@dataclass(frozen=True, kw_only=True)
class Family(Component):
    """A model family: its configuration's keys, its layers and the names of its weights."""

    @property
    @abc.abstractmethod
    def model_type(self) -> str:
        """``model_type`` in the Hugging Face ``config.json`` that this family reads."""

    @property
    @abc.abstractmethod
    def config_keys(self) -> frozenset[str]:
        """Keys a configuration of this family may hold."""

    @abc.abstractmethod
    def shape(self, config: Mapping[str, Any]) -> ModelShape:
        """The dimensions that plans and checks need. Raises KeyError for a missing key."""

    @abc.abstractmethod
    def shaped(self, config: Mapping[str, Any], shape: ModelShape) -> dict[str, Any]:
        """A configuration like ``config``, with these dimensions."""

    @abc.abstractmethod
    def layers(self, config: Any, attention: str) -> list[Any]:
        """The layers in order, as ``easyllm.models.layers.LayerSpec``."""

    def names(self) -> Any:
        """What the files call the parameters of these layers, an
        ``easyllm.models.names.Names``; None where they have the layers' own names."""
        return None

    def native_only(self, config: Mapping[str, Any]) -> str:
        """Why the model has no layout but its own; empty where ``modern`` gives one."""
        return ""

    def modern(self, config: Any) -> Any:
        """The configuration of the same model in the layout that every engine runs, whose
        parameters have the layers' own names. By default its own."""
        return config

    def modern_tensor(self, config: Any, name: str, tensor: Any) -> Any:
        """The layers' parameter ``name`` as the modern layout has it."""
        return tensor


@dataclass(frozen=True)
class ModelShape:
    """Dimensions of a decoder."""

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    tied: bool

    @property
    def layer_parameters(self) -> int:
        """Parameters of one decoder layer with a gated feed-forward, biases not counted."""
        attention = self.hidden_size * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size

    @property
    def embedding_parameters(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        embeddings = self.embedding_parameters * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + embeddings + self.hidden_size


@dataclass(frozen=True, kw_only=True)
class Parallelism(Component):
    """How training is laid out over the ranks."""

    data_parallel: Count | None = None
    """Replicas of the model; derived from the number of ranks when null."""
    micro_batch_size: Count = 1
    """Rows a replica takes at once."""
    global_batch_size: Count = 8
    """Rows of one optimizer step over all replicas. Gradient accumulation is derived."""
    checkpoint_activations: bool = False
    """Recompute each decoder layer in the backward pass instead of keeping its activations."""

    @property
    @abc.abstractmethod
    def stages(self) -> int:
        """Pipeline stages; 1 without a pipeline."""

    @property
    @abc.abstractmethod
    def state_shards(self) -> tuple[bool, bool, bool]:
        """Whether (optimizer state, gradients, parameters) are split over the replicas."""

    def replicas(self, ranks: int) -> int:
        """Data-parallel replicas on ``ranks`` ranks."""
        return self.data_parallel or max(1, ranks // self.stages)

    def accumulation(self, ranks: int) -> int:
        """Micro-batches a replica takes in one optimizer step."""
        return max(1, self.global_batch_size // (self.micro_batch_size * self.replicas(ranks)))

    @abc.abstractmethod
    def engine(self, run: RunSpec, **parts: Any) -> Any:
        """The training engine on this rank, an ``easyllm.parallelism.engine.TrainEngine``."""


@dataclass(frozen=True, kw_only=True)
class Optimizer(Component):
    lr: PositiveFloat = 3e-4
    """Peak learning rate."""

    @abc.abstractmethod
    def build(self, groups: list[dict[str, Any]]) -> Any:
        """A ``torch.optim.Optimizer`` over parameter groups; a group with ``decay`` false
        gets no weight decay."""


@dataclass(frozen=True, kw_only=True)
class Schedule(Component):
    warmup: NonNegativeFloat = 0.0
    """Steps of linear warm-up; a number below 1 is a share of all steps."""

    def warmup_steps(self, total: int) -> int:
        return int(self.warmup * total) if self.warmup < 1 else int(self.warmup)

    @abc.abstractmethod
    def factor(self, step: int, total: int) -> float:
        """The learning rate of step ``step`` (from 0) of ``total``, as a share of the peak."""


@dataclass(frozen=True, kw_only=True)
class Tracker(Component):
    """Where training metrics go besides ``metrics.jsonl``."""

    @abc.abstractmethod
    def open(self, name: str, folder: Path, settings: Mapping[str, Any]) -> Any:
        """Start tracking; returns an object with ``log(step, values)`` and ``close()``."""


class Launch(Protocol):
    """What a launcher is to the stages of one run."""

    def launch(
        self,
        command: Sequence[str],
        ranks: int,
        logs: Path,
        env: Mapping[str, str],
        *,
        nodes: int,
        files: Sequence[Path],
    ) -> int:
        """As ``Launcher.launch``."""


@dataclass(frozen=True, kw_only=True)
class Launcher(Component):
    """How the ranks of a stage are started, watched and ended.

    Ranks on this machine have its environment, as any child process has. Ranks on another
    have that machine's own; of this one they get what ``env`` and ``pass_env`` name.
    """

    env: dict[str, str] = field(default_factory=dict)
    """Variables set for every rank, on all machines, e.g. ``NCCL_SOCKET_IFNAME: eth0``. They
    stand in ``run.yaml``: name secrets in ``pass_env`` instead."""
    pass_env: tuple[str, ...] = ()
    """Names of variables of this environment that ranks on other machines get as well, with
    ``*`` for any text, e.g. ``WANDB_API_KEY`` or ``NCCL_*``."""
    grace: NonNegativeFloat = 5.0
    """Seconds between SIGTERM and SIGKILL for ranks that must end: another one has
    failed, or the user pressed Ctrl-C."""

    def lacks(self, key: str, run: RunSpec) -> Iterator[Problem]:
        """What this machine lacks to start the run's ranks: files, programs, variables.
        Asked before anything is started; may read small files."""
        return iter(())

    def follow(self, nodes: int) -> int | None:
        """Serve another machine that owns the run until that ends; returns the run's exit
        status. None where this machine owns it.

        For launchers under which the same command is started on each of ``nodes`` machines.
        """
        return None

    def follows(self, nodes: int) -> bool:
        """Whether this machine is one that ``follow`` serves another from."""
        return False

    @contextlib.contextmanager
    def opened(self, nodes: int, status: Callable[[], int]) -> Iterator[Launch]:
        """What launches the stages of one run, on the machine that owns it. ``status`` tells at
        the end how the run ended. Raises UserError where a machine cannot be reached."""
        yield self

    @abc.abstractmethod
    def launch(
        self,
        command: Sequence[str],
        ranks: int,
        logs: Path,
        env: Mapping[str, str],
        *,
        nodes: int = 1,
        files: Sequence[Path] = (),
    ) -> int:
        """Run ``command`` on ``ranks`` ranks, as many on each of ``nodes`` machines, until all
        have ended; returns the exit status.

        Each rank finds RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and
        MASTER_PORT in its environment. Words of ``command`` that name one of ``files`` name a
        copy of it on other machines. Output goes to ``logs/rank-<n>.log`` here, rank 0's to
        the terminal as well. When one rank fails the others are ended, and why is in
        ``logs/error-<n>.json`` (``easyllm.launchers.reports``). The status of the rank that
        failed first is returned (128 + signal for a rank that was killed). Raises UserError
        where a machine cannot be reached.
        """


@dataclass(frozen=True, kw_only=True)
class InferenceEngine(Component):
    """Generates text with a model in Hugging Face's format."""

    @abc.abstractmethod
    def load(self, model: Path, run: RunSpec) -> Any:
        """The loaded model, an ``easyllm.inference.engines.Generator``."""
