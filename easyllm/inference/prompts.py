"""What a run generates with and from: its model and its prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easyllm.data.templates import TokenizerTemplate
from easyllm.errors import UserError
from easyllm.models import source, tensor_files
from easyllm.paths import RunPaths
from easyllm.spec.run import RunSpec

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


@dataclass(frozen=True)
class Prompt:
    text: str
    name: str | None = None


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
    """The model to generate with, as a folder in Hugging Face's format."""
    return source.folder(model_path(run), RunPaths(run).models)


def model_files(run: RunSpec) -> list[Path]:
    """The local files of the model to generate with; none for one on the hub."""
    try:
        place = source.local(model_path(run))
    except UserError:
        return []
    if place is None:
        return []
    return [place / "config.json", *tensor_files.paths(place)] if place.is_dir() else [place]


def load_prompts(run: RunSpec) -> list[Prompt]:
    """The prompts of ``inference.prompts`` in order; blank lines of a file are passed over.

    Raises UserError where the file is missing or there is no prompt.
    """
    given = run.inference.prompts
    if not isinstance(given, str):
        return [Prompt(text, name) for name, text in given.items()]
    try:
        lines = Path(given).read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"inference.prompts={given}: no such file; give a text file with one prompt a line"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"inference.prompts={given}: cannot be read as UTF-8: {error}") from None
    prompts = [Prompt(line) for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"inference.prompts={given}: holds no prompt; write one a line")
    return prompts


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text to go on with, after the tokens that the tokenizer begins with."""
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


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of a completion, special tokens left out."""
    text: str = tokenizer.decode(list(tokens), skip_special_tokens=True)
    return text
