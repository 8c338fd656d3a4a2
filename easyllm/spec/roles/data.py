"""Roles of the data components: from files to tokens."""

from __future__ import annotations

import abc
import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from easyllm.spec.roles.base import Component
from easyllm.spec.types import PositiveFloat

if TYPE_CHECKING:
    from easyllm.spec.run import RunSpec


Message = Mapping[str, Any]
"""``role`` (system, user, assistant or tool) and ``content``. An assistant's message can also have
``reasoning_content``, ``tool_calls``, and ``train`` false where its answer is not trained. The
first message has the ``tools`` that the assistant may call. ``easyllm.data.chat.messages`` makes
them."""

Document = str | Sequence[Message]
"""A text, or a conversation."""


class ChatDocument(NamedTuple):
    """A document made from a conversation, or one of several."""

    ids: list[int]
    trained: list[bool]
    """Whether each token is trained."""
    arguments: tuple[str, ...] = ()
    """For each answer, the additional arguments, as JSON, with which the chat template rendered
    its context."""


@dataclass(frozen=True)
class Record:
    """A document, and the line or row of its file, counted from 1, at which it begins."""

    line: int
    document: Document

    @functools.cached_property
    def size(self) -> int:
        """Bytes of its text in UTF-8. Raises UnicodeEncodeError."""
        texts = (
            [self.document]
            if isinstance(self.document, str)
            else [message["content"] for message in self.document]
        )
        return sum(len(text) if text.isascii() else len(text.encode()) for text in texts)


@dataclass(frozen=True)
class Rejected:
    """A record that cannot be used: its line or row, counted from 1, and the reason."""

    line: int
    reason: str


@dataclass(frozen=True)
class ByteRange:
    """A range of a file's bytes that holds whole records and can be read by itself."""

    file: Path
    start: int
    end: int
    line: int
    """Number of the first line, from 1."""

    def __str__(self) -> str:
        return str(self.file)


File = Path | str | ByteRange
"""A local file, a URL that fsspec opens, or a part of a local file."""


@dataclass(frozen=True, kw_only=True)
class Reader(Component):
    """Turns files into documents."""

    sample: ClassVar[bool] = False
    """Whether it reads sample texts that come with a program, and not texts of the user."""
    weight: PositiveFloat = 1.0
    """How often an epoch holds each document of this source: 2 means twice, 0.5 means every other
    document. It is not a share of the mixture; ``stages=[inspect]`` shows each source's share of an
    epoch's tokens."""

    @abc.abstractmethod
    def files(self) -> Sequence[Path | str]:
        """The local files or URLs to read, sorted. Raises FileNotFoundError naming what is
        missing."""

    @abc.abstractmethod
    def documents(self, file: Any) -> Iterator[Document | Record | Rejected]:
        """The documents of one of ``files()``, or of one of its ``parts()``, in order.

        A bad record is given as ``Rejected``, and reading continues after it. Documents that are
        not in a ``Record`` are counted from 1.
        """

    def parts(self, file: Path | str, size: int, rows: int) -> Iterator[ByteRange] | None:
        """The file cut into ranges of about ``size`` bytes and at most ``rows`` documents,
        which several processes can read at once; None where it must be read from its
        beginning."""
        return None


@dataclass(frozen=True, kw_only=True)
class Tokenizer(Component):
    """Makes the tokenizer of the run."""

    @abc.abstractmethod
    def label(self, run: RunSpec) -> str:
        """A short name, used in the names of the store's folders."""

    @abc.abstractmethod
    def files(self, run: RunSpec) -> list[Path]:
        """Local files that its identity depends on, without those of the sources."""

    def rule(self, run: RunSpec) -> str | None:
        """A description, with a version, of the conversion that makes the tokenizer from its
        files. Where it changes, the same files give other ids. None where the files are used as
        they are."""
        return None

    def of_model(self, run: RunSpec) -> bool:
        """Whether it is taken from ``model.path``, at ``model.revision``."""
        return False

    def content(self, run: RunSpec) -> str | None:
        """A hash of files that the hub has at a known revision; None where they are not on this
        machine. It uses no network. ``files`` names local files."""
        return None

    @abc.abstractmethod
    def make(self, run: RunSpec, folder: Path) -> None:
        """Write the tokenizer into ``folder`` in Hugging Face's format."""


@dataclass(frozen=True, kw_only=True)
class Encoder(Component):
    """The engine that turns texts into token ids.

    An encoder is used only if its ids are those of Hugging Face's tokenizers. It is compared with
    them on texts that are hard to get right, on every token of the vocabulary and on the first
    documents of each source. An encoder changes how fast a store is made, never what it holds.
    """

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """Its name and version."""

    def prepare(self, folder: Path) -> None:
        """Write what ``load`` needs beside ``folder/tokenizer.json``, once for each tokenizer.

        That file is the tokenizer as transformers loaded it. Raises UserError where the engine
        does not support it.
        """

    @abc.abstractmethod
    def load(self, folder: Path) -> Callable[[list[str]], tuple[Any, Any]]:
        """A function from texts to numpy arrays: the concatenated ids of all texts, int32
        [tokens], and the offsets, int64 [texts + 1], at which the ids of each text begin.

        No token is added, and names of special tokens in a text are words. It runs in one
        thread; several processes do the work in parallel. Raises UserError as ``prepare`` does.
        """


@dataclass(frozen=True, kw_only=True)
class Template(Component):
    """How a conversation becomes tokens, and which of them are trained."""

    @abc.abstractmethod
    def encode(self, tokenizer: Any, messages: Sequence[Message]) -> list[ChatDocument]:
        """The documents of a conversation: token ids and, for each, whether it is trained. The
        assistant's words and the end of its turn are trained.

        There is one document where each answer follows exactly the ids of its prompt. There are
        several where a format later writes earlier turns in another way, and none where no answer
        is to be trained. Raises ``easyllm.errors.BadRecord`` for a conversation that it cannot
        express.
        """

    @abc.abstractmethod
    def prompt(self, tokenizer: Any, messages: Sequence[Message]) -> list[int]:
        """Token ids after which the assistant's next turn begins."""

    def stop_tokens(self, tokenizer: Any) -> list[int]:
        """The ids of the special tokens that end the assistant's turn and are trained with it;
        empty where there is no such token. Raises as ``encode`` does."""
        question = {"role": "user", "content": "Is it?"}
        answer = {"role": "assistant", "content": "Yes."}
        (document,) = self.encode(tokenizer, [question, answer])
        last = [t for t, train in zip(document.ids, document.trained, strict=True) if train][-1]
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        return [last] if last in special else []

    def prepare(self, folder: Path) -> None:
        """Change the store's tokenizer in ``folder``, which exported models contain, so that it
        renders what training used. Do nothing where it already does."""

    def chat_template(self, tokenizer: Any) -> str | None:
        """The same template as Jinja text, for the tokenizers of the store and of exported
        models; None keeps the tokenizer's own."""
        return None


@dataclass(frozen=True, kw_only=True)
class DataEngine(Component):
    """Does the work of the data stages, on this machine or on many.

    It never changes what they make. All its processes, on any machine, must see the sources
    and the token store under the same paths.
    """

    def start(self, run: RunSpec, size: int) -> None:
        """Begin to start what a stage with inputs of ``size`` bytes will need, while the stage's
        code is imported; returns at once."""

    @abc.abstractmethod
    def open(self, run: RunSpec, scratch: Path) -> contextlib.AbstractContextManager[Any]:
        """Start it for one stage and stop it when the block ends; gives an
        ``easyllm.data.executors.pool.Pool``.

        ``scratch`` is an empty folder beside the store, which is removed afterwards.
        """
