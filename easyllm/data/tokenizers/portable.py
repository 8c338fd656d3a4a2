"""A store's tokenizer in a form that all readers load alike, whatever class it names."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from easyllm.data.tokenizers.encode import load_tokenizer
from easyllm.files import read_json, write_json
from easyllm.models.compatible import GENERIC, settle_tokenizer

CONFIG, FILE = "tokenizer_config.json", "tokenizer.json"


def settle(folder: Path) -> None:
    """Make the tokenizer in ``folder`` load as its ``tokenizer.json`` is written.

    transformers 5.19 rebuilds a tokenizer whose class has its own rules: it then takes only the
    vocabulary from ``tokenizer.json``. DeepSeek's distilled models, whose byte-level tokenizer
    names ``LlamaTokenizerFast``, get SentencePiece's rules in this way; version 4 takes the file.
    Where the ids differ, the class is replaced by the one that takes the file in both versions.
    A tokenizer that comes with code is left as it is. Raises UserError where it cannot be loaded.
    """
    settle_tokenizer(folder)
    if not (folder / FILE).is_file():
        return
    try:
        config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    except ValueError:  # reported where the tokenizer is loaded
        return
    if "auto_map" in config:
        return
    if config.get("tokenizer_class") != GENERIC and _rebuilt(folder):
        write_json(folder / CONFIG, {**config, "tokenizer_class": GENERIC})
        settle_tokenizer(folder)


def of_model(folder: Path) -> Any:
    """The tokenizer in a model's folder. Raises OSError, ValueError or UserError.

    Where the folder names the class that takes ``tokenizer.json`` as it is, that class is used, as
    it was when the store was made. AutoTokenizer of transformers 5.19 uses Qwen2's class for every
    folder whose ``config.json`` is of type ``qwen2``, and so Qwen2's rules for any vocabulary.
    """
    from transformers import AutoTokenizer

    file = folder / CONFIG
    named = read_json(file).get("tokenizer_class") if file.is_file() else None
    return load_tokenizer(folder) if named == GENERIC else AutoTokenizer.from_pretrained(folder)


def read_otherwise(folder: Path) -> str | None:
    """Describes where the installed transformers' ``AutoTokenizer`` gives a model other ids.

    The ids are compared with those that the model was trained with; None where all are the same.
    """
    from transformers import AutoTokenizer

    ours, auto = of_model(folder), AutoTokenizer.from_pretrained(folder)
    if not (ours.is_fast and auto.is_fast):
        return None
    difference = _difference(
        auto.backend_tokenizer, ours.backend_tokenizer, ours.all_special_tokens
    )
    return difference and (
        f"AutoTokenizer of transformers {version('transformers')} takes {type(auto).__name__} for "
        f"this folder, which gives other tokens than the model was trained with: {difference}; "
        f"load it with {GENERIC}.from_pretrained, as easyllm does"
    )


def _rebuilt(folder: Path) -> bool:
    """Whether the class that the folder names gives other ids than its ``tokenizer.json``."""
    from tokenizers import Tokenizer

    named = load_tokenizer(folder)
    if not named.is_fast:
        return False
    core = Tokenizer.from_file(str(folder / FILE))
    core.no_truncation()
    core.no_padding()
    difference = _difference(named.backend_tokenizer, core, named.all_special_tokens)
    return difference is not None


def _difference(found: Any, right: Any, special: list[str]) -> str | None:
    """The first hard text whose ids differ, and both lists of ids; None where there is none."""
    from easyllm.data.tokenizers.select_backend import sample

    texts = sample(special)
    pairs = zip(*(core.encode_batch(texts, add_special_tokens=False) for core in (found, right)),
                strict=True)  # fmt: skip
    for text, (one, other) in zip(texts, pairs, strict=True):
        if one.ids != other.ids:
            return f"{text[:40]!r} gives {one.ids[:8]}, and in training {other.ids[:8]}"
    return None
