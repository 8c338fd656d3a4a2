"""Tokenizers: where a run's vocabulary comes from."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from easyllm.data.tokenizers.special import SPEAKERS
from easyllm.errors import Unusable, UserError
from easyllm.files import stable_hash
from easyllm.models import source
from easyllm.paths import RunPaths
from easyllm.spec.problems import Problem
from easyllm.spec.roles import Tokenizer
from easyllm.spec.types import Count, ModelPath

if TYPE_CHECKING:
    from easyllm.spec.run import RunSpec

FILES = (
    "tokenizer*.json",
    "tokenizer.model",
    "vocab.*",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template*",
    "additional_chat_templates/*",
    "*.tiktoken",
    "tokenization_*.py",
)
"""What a tokenizer consists of in a folder in Hugging Face's format."""

PATHS = (
    "give a folder in Hugging Face's format, a hub id, a .gguf or .tiktoken file, or "
    "package:NAME/FILE"
)


def problem(path: str) -> str | None:
    """The problem with a tokenizer's path, as far as it can be seen without loading."""
    try:
        place = source.local(path)
    except Unusable as error:
        return error.what
    if place is None or place.suffix == ".tiktoken":
        return None
    if place.is_dir():
        return None if tokenizer_files(place) else "the folder holds no tokenizer"
    return source.problem(path) or source.tokenizer_problem(path)


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a folder in Hugging Face's format that make its tokenizer, sorted."""
    found = (file for file in folder.rglob("*") if file.is_file())
    return sorted(f for f in found if any(fnmatch(str(f.relative_to(folder)), p) for p in FILES))


@dataclass(frozen=True, kw_only=True)
class Pretrained(Tokenizer):
    """A published tokenizer, taken as it is."""

    path: ModelPath | None = None
    """A folder, hub id, ``.gguf`` file or ``package:NAME/FILE``, as in ``model.path``, or a
    ``.tiktoken`` file such as Qwen's ``qwen.tiktoken``; null takes the model's own."""

    def problems(self, key: str, run: RunSpec) -> Iterator[Problem]:
        if "tokenize" in run.stages and not self._path(run):
            yield Problem(
                f"{key}.path",
                None,
                "neither a tokenizer nor a model to take it from is given",
                f"give {key}.path or model.path, or "
                f"{key}._target_=easyllm.data.tokenizers.components.ByteLevelBPE",
                also=("model.path",),
            )

    def label(self, run: RunSpec) -> str:
        path = Path(self._path(run) or "")
        return path.stem if path.suffix in (".gguf", ".tiktoken") else path.name

    def files(self, run: RunSpec) -> list[Path]:
        path = self._path(run)
        try:
            place = source.local(path) if path else None
        except UserError:
            return []
        if place is None:
            return []
        return tokenizer_files(place) if place.is_dir() else [place]

    def rule(self, run: RunSpec) -> str | None:
        path = self._path(run)
        return source.tokenizer_rule(path) if path else None

    def of_model(self, run: RunSpec) -> bool:
        return bool(run.model.path) and self._path(run) == run.model.path

    def content(self, run: RunSpec) -> str | None:
        model = run.model
        if not (self.of_model(run) and model.path and model.revision):
            return None
        place = source.snapshot(model.path, model.revision)
        if place is None:
            return None
        return stable_hash(
            [
                (str(file.relative_to(place)), hashlib.sha256(file.read_bytes()).hexdigest())
                for file in tokenizer_files(place)
            ]
        )

    def make(self, run: RunSpec, folder: Path) -> None:
        path = self._path(run)
        assert path, "checked by problems()"
        origin = source.local(path)
        if origin is not None and origin.suffix == ".tiktoken":
            return _from_ranks(origin, folder, run)
        if origin is None or not origin.is_dir():
            revision = run.model.revision if self.of_model(run) else None
            origin = source.folder(path, RunPaths(run).models, False, revision)
        if reason := source.without_tokenizer(origin):
            raise UserError(reason)
        files = tokenizer_files(origin)
        ranks = [file for file in files if file.suffix == ".tiktoken"]
        if ranks and origin / "tokenizer.json" not in files:
            return _from_ranks(ranks[0], folder, run)
        if not files:
            raise UserError(
                f"{path} holds no tokenizer; give data.tokenizer.path=<folder or hub id>"
            )
        if (origin / "tokenizer.model").is_file():
            from easyllm.data.tokenizers import compare, convert_sentencepiece

            if convert_sentencepiece.applies(origin):
                return convert_sentencepiece.convert(origin, folder, compare.first_documents(run))
            convert_sentencepiece.notice_disagreement(origin)
        # copied as they are: older transformers cannot always read what a newer one saves
        for file in files:
            to = folder / file.relative_to(origin)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, to)
        return None

    def _path(self, run: RunSpec) -> str | None:
        return self.path or run.model.path


def _from_ranks(file: Path, folder: Path, run: RunSpec) -> None:
    from easyllm.data.tokenizers import compare, convert_tiktoken

    convert_tiktoken.convert(file, folder, compare.first_documents(run))


@dataclass(frozen=True, kw_only=True)
class ByteLevelBPE(Tokenizer):
    """A byte-level BPE vocabulary trained on the run's own sources.

    Has the special tokens ``<|endoftext|>`` (end, begin and padding) and, for
    conversations, ``<|system|>``, ``<|user|>``, ``<|assistant|>`` with a chat template.
    """

    vocab_size: Count = 4096
    """Tokens, special ones included; small texts may yield fewer."""

    def problems(self, key: str, run: RunSpec) -> Iterator[Problem]:
        least = 256 + 1 + len(SPEAKERS)
        if self.vocab_size < least:
            yield Problem(
                f"{key}.vocab_size",
                self.vocab_size,
                f"the 256 bytes and the special tokens take {least}",
                f"give at least {least}",
            )
        model = {**run.model.config, **run.model.overrides}.get("vocab_size")
        if "train" in run.stages and isinstance(model, int) and model < self.vocab_size:
            yield Problem(
                f"{key}.vocab_size",
                self.vocab_size,
                f"the model has {model} tokens only",
                f"give at most {model}, or model.overrides.vocab_size={self.vocab_size}",
                also=("model.config.vocab_size", "model.overrides.vocab_size"),
            )

    def label(self, run: RunSpec) -> str:
        return f"bpe{self.vocab_size}"

    def files(self, run: RunSpec) -> list[Path]:
        return []

    def make(self, run: RunSpec, folder: Path) -> None:
        from easyllm.data.tokenizers.train_bpe import train

        train(run, folder, self.vocab_size)
