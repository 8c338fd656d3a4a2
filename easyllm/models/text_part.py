"""The text model within a published model that also takes images or sound. Standard library only.

Its configuration is ``text_config`` in ``config.json``. Its tensors have names with
``language_model`` in them, beside those of the other parts, which are not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

PREFIXES = {
    "language_model.": "",
    "model.language_model.model.": "model.",
    "model.language_model.": "model.",
}
"""The beginnings of names of the text model's tensors, and what the text model alone has there."""


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the text part, or ``config`` where that is all of the model."""
    inner = config.get("text_config")
    if not isinstance(inner, dict) or not isinstance(inner.get("model_type"), str):
        return config
    tied = config.get("tie_word_embeddings")
    return {**({} if tied is None else {"tie_word_embeddings": tied}), **inner}


def text_names(names: Iterable[str]) -> Mapping[str, str]:
    """The text model's names of tensors, each with its name in the files. Where no tensor has
    ``language_model`` in its name, all belong to the text model."""
    names = list(names)
    inner = [name for name in names if name.startswith(tuple(PREFIXES))]
    if not inner:
        return {name: name for name in names}
    found = {}
    for name in inner:
        prefix = max((p for p in PREFIXES if name.startswith(p)), key=len)
        found[PREFIXES[prefix] + name.removeprefix(prefix)] = name
    # heads stand beside the parts in newer files
    return found | {name: name for name in names if name.startswith("lm_head.")}
