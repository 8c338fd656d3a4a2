"""Follows documents from the store to the served model, and compares what each program makes of
them."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from easyllm.data.chat.templates import TokenizerTemplate
from easyllm.errors import UserError
from easyllm.evaluation.verify import comparisons, served
from easyllm.evaluation.verify.comparisons import Comparison
from easyllm.evaluation.verify.plain_model import ask
from easyllm.evaluation.verify.samples import Document
from easyllm.evaluation.verify.server import Server
from easyllm.evaluation.verify.subject import HELDOUT_TOKENS, Subject
from easyllm.evaluation.verify.trained import TrainedModel
from easyllm.inference import prompts
from easyllm.models.config import family_of, hf_config
from easyllm.paths import RunPaths
from easyllm.spec.roles import Template
from easyllm.spec.run import RunSpec
from easyllm.training.checkpointing.checkpoints import Checkpoint
from easyllm.training.export.hf import export


@dataclass(frozen=True)
class Verification:
    model: Path
    """The folder of the model that was verified."""
    versions: dict[str, str]
    """Of transformers and torch, which were the reference."""
    documents: list[Document]
    """The documents that were given to the model, with the tokens that are trained."""
    comparisons: list[Comparison]
    """In the order in which data passes the programs."""

    @property
    def first_difference(self) -> Comparison | None:
        return next((one for one in self.comparisons if one.status == "differs"), None)


def verify(run: RunSpec) -> Verification:
    """Compare what each program makes of the run's model. Raises UserError where transformers
    cannot load it, and where there is no server at ``verify.url``."""
    paths = RunPaths(run)
    adapter = not run.inference.model and (paths.export / "adapter_config.json").exists()
    folder = paths.export if adapter else prompts.model_folder(run)
    gguf = not run.inference.model and any(paths.export.glob("*.gguf"))
    server = Server(run.verify.url) if run.verify.url else None
    subject = Subject(run, folder, own=gguf or folder == paths.export, quantized=gguf)
    found = [*_tokens(subject), *_numbers(subject)]
    if not subject.adapter:
        found += _or_error("engine", lambda: served.by_engine(subject))
    if server:
        found += _or_error("server", lambda: served.by_server(subject, server))
    return Verification(folder, subject.plain["versions"], subject.documents, found)


def _or_error(what: str, compare: Callable[[], Iterable[Comparison]]) -> list[Comparison]:
    """Comparisons; where they cannot be made, why, after those that were made before."""
    found: list[Comparison] = []
    try:
        for one in compare():
            found.append(one)
    except UserError as error:
        between = f"transformers ~ the {what}"
        means = "it cannot be used with the model as it is"
        found.append(Comparison(what, between, "differs", str(error), means))
    return found


def _tokens(subject: Subject) -> Iterator[Comparison]:
    held, run = subject.samples, subject.run
    between = "the sources' texts now ~ the store"
    if held.missing:
        yield comparisons.skipped("store", between, held.missing)
    else:
        means = (
            "the sources, the tokenizer or the template changed after the store was made; make it "
            "again with tokenize among the stages"
        )
        ids = comparisons.tokens(
            "store", between, _joined(held.encoded, "ids"), _joined(held.stored, "ids"), means,
            subject.tokenizer.decode,
        )  # fmt: skip
        masks = comparisons.tokens(
            "store", f"{between}: which tokens are trained", _joined(held.encoded, "trained"),
            _joined(held.stored, "trained"), means,
        )  # fmt: skip
        yield ids if ids.status == "differs" else masks if masks.status == "differs" else ids
    whose = "easyllm" if held.missing else "the store"
    yield comparisons.tokens(
        "tokenizer", f"{whose} ~ the model's folder in transformers", held.text_ids,
        dict(zip(held.texts, subject.plain["texts"], strict=True)),
        "the folder has other tokenizer files than the model was trained with, or transformers "
        "rebuilds them by the rules of the class that tokenizer_config.json names",
        subject.tokenizer.decode,
    )  # fmt: skip
    between = "data.template ~ the folder's chat_template in transformers"
    template = run.data.template
    renders = isinstance(template, TokenizerTemplate) or (
        type(template).chat_template is not Template.chat_template
    )
    if not subject.prompts or not renders:
        none = subject.refused or "there is no conversation, and no chat_template"
        why = "data.template has no Jinja form" if subject.prompts else none
        yield comparisons.skipped("chat template", between, why)
    else:
        yield comparisons.tokens(
            "chat template", between, subject.prompts,
            dict(zip(subject.prompts, subject.plain["prompts"], strict=True)),
            "the folder's chat template is not the one of training, or needs arguments that "
            "clients must send too", subject.tokenizer.decode,
        )  # fmt: skip


def _joined(documents: dict[str, list[Document]], part: str) -> dict[str, list[Any]]:
    """A part of the documents of each text, one after the other."""
    return {
        name: [value for document in found for value in getattr(document, part)]
        for name, found in documents.items()
    }


def _numbers(subject: Subject) -> Iterator[Comparison]:
    run, checkpoint = subject.run, subject.checkpoint
    merged = run.training.adapter is not None
    name = "merged adapter" if merged and not subject.adapter else "weights"
    between = "the checkpoint as it was trained ~ the export in transformers"
    packed = "documents in one row ~ each by itself, by the layers of training"
    if checkpoint is None:
        why = "the model is not this run's export" if not subject.own else "there is no checkpoint"
        yield comparisons.skipped(name, between, why)
        return
    documents = [document.ids for document in subject.documents]
    try:
        model = TrainedModel(run, checkpoint)
        together = model.logprobs(documents)
        alone = [model.logprobs([ids])[0] for ids in documents]
        norm = model.grad_norm(subject.gradient) if subject.gradient else None
    except torch.OutOfMemoryError:
        why = f"the layers of training do not fit into one device of {run.hardware.device}"
        yield comparisons.skipped(name, between, why)
        return
    del model
    gc.collect()
    yield comparisons.logprobs(
        "packing", packed, together, alone, subject.names, run.model.dtype,
        "this model carries something from one document to the next; train with "
        "data.packing=none",
    )  # fmt: skip
    yield comparisons.logprobs(
        name, between, alone, subject.expected, subject.names, subject.kept_dtype,
        "the export is of another checkpoint, a tensor is missing, tied, in another dtype or under "
        "another name, or an adapter was merged twice or not at all",
    )  # fmt: skip
    yield _gradient(subject, norm)
    yield from _heldout(subject, checkpoint)
    yield from _other_layout(subject, checkpoint)


def _gradient(subject: Subject, norm: float | None) -> Comparison:
    between = "the layers of training ~ the export in transformers"
    if norm is None:
        why = "an adapter alone is trained" if subject.run.training.adapter else (
            "the model is too large for it here; train with training.check_engine=true"
        )  # fmt: skip
        return comparisons.skipped("gradient", between, why)
    plain, limit = subject.plain["grad_norm"], comparisons.GRADIENT[subject.kept_dtype]
    difference = abs(norm - plain) / max(abs(plain), 1e-12)
    return Comparison(
        "gradient", between, "same" if difference <= limit else "differs",
        f"norm {norm:.6g} and {plain:.6g}, {difference:.2g} of it apart",
        "the model is trained otherwise than transformers computes it; please report it",
        {"grad_norm": [norm, plain], "limit": limit},
    )  # fmt: skip


def _heldout(subject: Subject, checkpoint: Checkpoint) -> Iterator[Comparison]:
    """The loss that the engine of training found last, on its own ranks."""
    record = RunPaths(subject.run).record("train")
    metrics = json.loads(record.read_text("utf-8"))["metrics"] if record.is_file() else {}
    loss, between = metrics.get("eval_loss"), "the engine of training ~ the export in transformers"
    if loss is None or checkpoint.step != metrics.get("steps") or not subject.heldout:
        why = "training found no held-out loss of this checkpoint"
        if loss is not None and not subject.heldout:
            why = f"the held-out documents have more than {HELDOUT_TOKENS:,} tokens"
        yield comparisons.skipped("held-out loss", between, why)
        return
    total = count = 0.0
    values = subject.plain["logprobs"][len(subject.documents) :]
    for (_, labels), logprobs in zip(subject.heldout, values, strict=True):
        chosen = [-v for v, label in zip(logprobs, labels[1:], strict=True) if label != -100]
        total += sum(chosen)
        count += len(chosen)
    again, limit = total / count, comparisons.ROUNDING[subject.kept_dtype]
    near = abs(loss - again) <= limit
    yield Comparison(
        "held-out loss", between, "same" if near else "differs",
        f"{loss:.5f} and {again:.5f} over {int(count):,} tokens",
        "the engine computes otherwise than transformers, or the export is of another checkpoint",
        {"loss": [loss, again], "limit": limit},
    )  # fmt: skip


def _other_layout(subject: Subject, checkpoint: Checkpoint) -> Iterator[Comparison]:
    run = subject.run
    config = hf_config(run)
    family = family_of(run, config.model_type)
    between = f"export.layout={run.export.layout} ~ the other one, both in transformers"
    if subject.adapter or family.one_layout or family.canonical(config) is config:
        return
    if why := family.native_only(config.to_dict()):
        yield comparisons.skipped("layout", between, f"there is one only: {why}")
        return
    layout: Literal["native", "canonical"]
    layout = "canonical" if run.export.layout == "native" else "native"
    with TemporaryDirectory() as scratch:
        target = Path(scratch) / "export"
        export(checkpoint, target, replace(run, export=replace(run.export, layout=layout)))
        found = ask(run, target, remote_code=True, documents=[d.ids for d in subject.documents])
    yield comparisons.logprobs(
        "layout", between, subject.expected, found["logprobs"], subject.names, subject.dtype,
        "the conversion of this family between its two layouts is wrong; please report it",
    )  # fmt: skip
