"""The model that a run generates with, and tokens of texts and conversations for it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from easyllm.data.chat import beside
from easyllm.data.chat.templates import TokenizerTemplate
from easyllm.errors import UserError
from easyllm.models import source, tensor_files
from easyllm.paths import RunPaths
from easyllm.spec.run import RunSpec

KEYS = (
    "seed",
    "inference",
    "data.template",
    "model.path",
    "model.revision",
    "model.init",
    "model.dtype",
    "model.attention",
    "hardware.device",
)
"""Keys of the spec that decide what is generated."""


def model_path(run: RunSpec) -> str:
    """The model to generate with, as ``models.source`` understands it.

    ``inference.model``, else the run's export, else, where the run trains nothing, the
    pretrained ``model.path``. Raises UserError where there is none of them.
    """
    if run.inference.model:
        return run.inference.model
    export = RunPaths(run).export
    if (export / "config.json").exists():
        return str(export)
    if len(files := list(export.glob("*.gguf"))) == 1:
        return str(files[0])
    if "train" in run.stages or RunPaths(run).checkpoints.is_dir():
        raise UserError(
            f"the run's trained model is not exported to {export}; add export to stages, or give "
            "inference.model=<folder or hub id>"
        )
    if run.model.path and run.model.init == "pretrained":
        return run.model.path
    raise UserError(
        f"inference.model is not given and {export} holds no model; run the stages train "
        "and export first, or give inference.model=<folder or hub id>"
    )


def of_model(run: RunSpec) -> bool:
    """Whether the model to generate with is that at ``model.path``."""
    try:
        return "export" not in run.stages and model_path(run) == run.model.path
    except UserError:
        return False


def model_name(run: RunSpec) -> str:
    """The name of the model to generate with, which does not show where the model is.

    The run's name for its own export; for another run's export the name of that run's folder;
    otherwise the hub id, or the name of the folder or file. Raises UserError as ``model_path``.
    """
    path = model_path(run)
    place = source.local(path)
    if place is None:
        return path
    place = Path(os.path.abspath(place))
    folder = place if place.is_dir() else place.parent
    if folder == RunPaths(run).export:
        return run.name
    if folder.name == "export" and (folder.parent / "run.yaml").is_file():
        return folder.parent.name
    return place.name if place.is_dir() else place.stem


def model_folder(run: RunSpec) -> Path:
    """The model to generate with, as a folder in Hugging Face's format. Raises UserError."""
    path = model_path(run)
    revision = run.model.revision if path == run.model.path else None
    folder = source.folder(path, RunPaths(run).models, revision=revision)
    if reason := source.without_tokenizer(folder):
        raise UserError(reason)
    return folder


def model_files(run: RunSpec) -> list[Path]:
    """The local files of the model to generate with; none for one on the hub."""
    try:
        place = source.local(model_path(run))
    except UserError:
        return []
    if place is None:
        return []
    return [place / "config.json", *tensor_files.paths(place)] if place.is_dir() else [place]


def conversation(messages: object, record: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The messages to answer, in the form of training, with the ``tools`` and the system prompt
    that a ``record`` has besides them. Raises BadRecord."""
    made = beside.conversation(messages, record or {})
    for message in made:
        message.pop("train", None)  # nothing here is trained
    return made


def _unicode(text: str) -> str:
    """``text``. Raises UserError for half of a surrogate pair, which JSON can spell."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the text is not Unicode at character {error.start + 1}") from None
    return text


def encode_text(tokenizer: Any, text: str, special: bool = True) -> list[int]:
    """Token ids of a text to continue, with ``special`` after the tokens that the tokenizer begins
    with.

    Raises UserError for a text that is not Unicode.
    """
    _unicode(text)
    ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    return ids


def encode_messages(
    run: RunSpec, tokenizer: Any, messages: Sequence[Mapping[str, Any]]
) -> list[int]:
    """Token ids after which the answer to ``messages`` begins, by ``data.template``.

    A base model, whose tokenizer has no chat template, continues the messages' texts, one a
    line.
    """
    template = run.data.template
    if isinstance(template, TokenizerTemplate) and not tokenizer.chat_template:
        for key in ("tools", "tool_calls", "reasoning_content"):
            if any(message.get(key) for message in messages):
                raise UserError(
                    f"the conversation has {key!r}, and the tokenizer has no chat_template to put "
                    "it into words; remove it, or give a model that has one"
                )
        return encode_text(tokenizer, "\n".join(message["content"] for message in messages))
    return template.prompt(tokenizer, messages)
