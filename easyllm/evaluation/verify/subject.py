"""The model that is verified, and what transformers alone makes of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from easyllm.data.tokenizers.encode import load_tokenizer
from easyllm.data.tokenizers.portable import of_model
from easyllm.errors import BadRecord, UserError
from easyllm.evaluation.verify import comparisons
from easyllm.evaluation.verify.plain_model import ask
from easyllm.evaluation.verify.samples import (
    Document,
    Samples,
    samples,
    shortened,
    without_store,
)
from easyllm.inference import prompts
from easyllm.models.weights import DTYPES
from easyllm.paths import RunPaths
from easyllm.spec.roles import Message
from easyllm.spec.run import RunSpec
from easyllm.training.checkpointing import checkpoints
from easyllm.training.checkpointing.checkpoints import Checkpoint

GRADIENTS = 4_000_000_000
"""Bytes of a model's files up to which gradients are compared: they need as much memory again."""
HELDOUT_TOKENS = 1 << 16
"""Tokens of all held-out documents up to which their loss is computed again."""


@dataclass
class Subject:
    """The model that is verified, and what transformers alone makes of it."""

    run: RunSpec
    folder: Path
    own: bool
    """Whether it is the run's export."""
    quantized: bool = False
    """Whether it is a GGUF file, whose weights may be rounded to few bits."""

    @property
    def adapter(self) -> bool:
        """Whether it is an adapter without its model."""
        return not (self.folder / "config.json").exists()

    @cached_property
    def dtype(self) -> str:
        """The coarser dtype of the files and of computation."""
        kept = "float32"
        if not self.adapter:
            config = json.loads((self.folder / "config.json").read_text("utf-8"))
            config = config.get("text_config", config)
            kept = config.get("dtype") or config.get("torch_dtype") or "float32"
        computed = self.run.model.dtype
        coarser = max(kept, computed, key=lambda name: list(comparisons.ROUNDING).index(name)
                      if name in comparisons.ROUNDING else -1)  # fmt: skip
        return coarser if coarser in DTYPES else computed

    @property
    def kept_dtype(self) -> str:
        """The coarser dtype of the checkpoint and of the files made from it."""
        return "bfloat16" if self.quantized else self.dtype

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the run's store; without one that of the model."""
        store = RunPaths(self.run).store.tokenizer
        return load_tokenizer(store) if self.own and store.is_dir() else of_model(self.folder)

    @cached_property
    def samples(self) -> Samples:
        return samples(self.run, self.tokenizer) if self.own else without_store(self.tokenizer)

    @cached_property
    def documents(self) -> list[Document]:
        run = self.run
        return shortened(self.samples.documents, min(run.verify.max_tokens, run.data.seq_len))

    @property
    def asked(self) -> list[Document]:
        """The first half of each document, which a greedy answer continues."""
        return [Document(d.name, d.ids[: max(1, len(d.ids) // 2)], []) for d in self.documents]

    @property
    def prompts(self) -> dict[str, list[int]]:
        """By conversation the tokens that ``data.template`` asks with."""
        return self._prompts[0]

    @property
    def refused(self) -> str:
        """Why ``data.template`` asks for no answer to a conversation; empty where it does."""
        return "; ".join(self._prompts[1])

    @cached_property
    def _prompts(self) -> tuple[dict[str, list[int]], list[str]]:
        found, refused = {}, []
        for name, messages in self.samples.prompts().items():
            try:
                found[name] = prompts.encode_messages(self.run, self.tokenizer, messages)
            except (BadRecord, UserError) as error:
                refused.append(f"{name}: {error}")
        return found, refused

    @cached_property
    def heldout(self) -> list[tuple[list[int], list[int]]]:
        """Token ids and labels of all held-out documents; none where they are too many."""
        file = RunPaths(self.run).heldout
        if not self.own or not file.is_file():
            return []
        lines = (json.loads(line) for line in file.open(encoding="utf-8"))
        found = [(line["input_ids"], line["labels"]) for line in lines]
        few = sum(len(ids) for ids, _ in found) <= HELDOUT_TOKENS
        return [pair for pair in found if len(pair[0]) > 1] if few else []

    @cached_property
    def plain(self) -> dict[str, Any]:
        asked = self.samples.prompts()
        return ask(
            self.run, self.folder, remote_code=self.own and not self.quantized,
            texts=list(self.samples.texts.values()),
            prompts=[conversation(self.run, asked[name]) for name in self.prompts],
            documents=[*(d.ids for d in self.documents), *(ids for ids, _ in self.heldout)],
            asked=[d.ids for d in self.asked],
            gradient=self.gradient,
        )  # fmt: skip

    @cached_property
    def gradient(self) -> list[int]:
        """The document whose gradient is computed; none for an adapter, and for a large model."""
        if self.checkpoint is None or self.run.training.adapter:
            return []
        size = sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))
        return self.documents[0].ids if size <= GRADIENTS else []

    @property
    def names(self) -> list[str]:
        return [document.name for document in self.documents]

    @property
    def expected(self) -> list[list[float]]:
        """The documents' log-probabilities by transformers alone."""
        found: list[list[float]] = self.plain["logprobs"][: len(self.documents)]
        return found

    @cached_property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint that the export was made of."""
        if not self.own:
            return None
        paths = RunPaths(self.run)
        for record in sorted(paths.records.glob("export*.json"), reverse=True):
            metrics = json.loads(record.read_text("utf-8")).get("metrics", {})
            if metrics.get("folder") == str(self.folder):
                return checkpoints.opened(Path(metrics["checkpoint"]))
        return checkpoints.newest(paths.checkpoints)[0]


def conversation(run: RunSpec, messages: list[Message]) -> dict[str, Any]:
    """A conversation as anybody gives it to ``apply_chat_template``."""
    plain = [
        {key: value for key, value in message.items() if key not in ("train", "tools")}
        for message in messages
    ]
    arguments = getattr(run.data.template, "arguments", {})
    return {"messages": plain, "tools": messages[0].get("tools"), "arguments": arguments}
