"""What a run generates with: its model, and tokens of texts and conversations for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from easyllm.data.templates import TokenizerTemplate
from easyllm.errors import UserError
from easyllm.models import source, tensor_files
from easyllm.paths import RunPaths
from easyllm.spec.run import RunSpec

ROLES = ("system", "user", "assistant", "tool")
TURN = f'a message is {{"role": …, "content": TEXT}} or {{"user": TEXT}}, with {", ".join(ROLES)}'

KEYS = (
    "seed",
    "inference",
    "data.template",
    "model.path",
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
            f"the run's trained model is not exported to {export}: add export to stages, or give "
            "inference.model=<folder or hub id>"
        )
    if run.model.path and run.model.init == "pretrained":
        return run.model.path
    raise UserError(
        f"inference.model is not given and {export} holds no model: run the stages train "
        "and export first, or give inference.model=<folder or hub id>"
    )


def model_folder(run: RunSpec) -> Path:
    """The model to generate with, as a folder in Hugging Face's format. Raises UserError."""
    folder = source.folder(model_path(run), RunPaths(run).models)
    if told := source.without_tokenizer(folder):
        raise UserError(told)
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


def turn(message: object) -> dict[str, Any]:
    """A message as ``{"role": …, "content": …}``, from that shape or from ``{"user": TEXT}``.

    Parts of a content, ``[{"type": "text", "text": …}]``, are joined. Raises UserError.
    """
    if not isinstance(message, Mapping):
        raise UserError(f"{TURN}, not {type(message).__name__}")
    if "role" in message:
        made = {key: value for key, value in message.items() if value is not None}
    elif len(message) == 1:
        [(role, content)] = message.items()
        made = {"role": role, "content": content}
    else:
        raise UserError(f"{TURN}, not one with the keys [{', '.join(map(str, message))}]")
    if made["role"] == "developer":  # OpenAI's newer name
        made["role"] = "system"
    if made["role"] not in ROLES:
        raise UserError(f"{TURN}, not of {str(made['role'])!r}")
    content = made.get("content", "")
    if isinstance(content, Sequence) and not isinstance(content, str):
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        content = "".join(part for part in parts if isinstance(part, str))
        if not all(isinstance(part, str) for part in parts):
            raise UserError("a message's content is text; this model takes nothing else")
    if not isinstance(content, str):
        raise UserError(f"{TURN}; its content is of {type(content).__name__}")
    return {**made, "content": _unicode(content)}


def _unicode(text: str) -> str:
    """``text``, without halves of surrogate pairs, which JSON can spell and no text holds."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the text is not Unicode at character {error.start + 1}") from None
    return text


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text to go on with, after the tokens that the tokenizer begins with.

    Raises UserError for a text that is not Unicode.
    """
    _unicode(text)
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids


def encode_messages(
    run: RunSpec, tokenizer: Any, messages: Sequence[Mapping[str, str]]
) -> list[int]:
    """Token ids after which the answer to ``messages`` begins, by ``data.template``.

    A base model, whose tokenizer has no chat template, goes on with the messages' texts,
    a line each.
    """
    template = run.data.template
    if isinstance(template, TokenizerTemplate) and not tokenizer.chat_template:
        return encode_text(tokenizer, "\n".join(message["content"] for message in messages))
    return template.prompt(tokenizer, messages)
