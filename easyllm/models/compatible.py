"""Files of a model that transformers 4, vLLM with it, and transformers 5 read in the same way.

Version 5 writes some keys under new names only, and readers of the old names take their own
defaults without a warning: transformers 4.57.6 reads 10,000 for a ``rope_theta`` that is only in
``rope_parameters``, and refuses the tokenizer class ``TokenizersBackend``. This module was written
from the sources of transformers 4.57.6 and 5.19.0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easyllm.files import atomic_write

ROPE = ("rope_parameters", "rope_scaling", "rope_theta")
BESIDE_ROPE = ("rope_theta", "partial_rotary_factor")
"""Keys that version 5 has in ``rope_parameters`` and version 4 beside ``rope_scaling``."""
KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
"""The kinds of rotary positions that version 4 knows. Where types of layers differ, version 5.19
would read another kind from the older keys, without the rest of its parameters, and refuse it."""
LOCAL = frozenset(
    "_commit_hash _from_auto _name_or_path device_map files_loaded is_local "  # noqa: SIM905
    "local_files_only name_or_path special_tokens_map_file tokenizer_file vocab_file".split()
)
"""Keys that describe how one machine loaded the files."""
GENERIC = "PreTrainedTokenizerFast"
"""The class, known to versions 4 and 5, that takes a ``tokenizer.json`` as it is."""
NEW_CLASSES = ("TokenizersBackend", "TokenizersBackendFast")
"""Version 5's names of this class."""


def older_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys about rotary positions as version 4 spells them; empty where there are none.

    They are read with the precedence of version 5: ``rope_scaling`` before ``rope_parameters``, and
    a ``rope_theta`` within either before the one beside it. Where each type of layer has its own
    positions, those of the full-attention layers are given, and those of the sliding-window layers
    as ``rope_local_base_freq``, as in Gemma 3.
    """
    given = config.get("rope_scaling") or config.get("rope_parameters")
    beside = {key: config[key] for key in BESIDE_ROPE if config.get(key) is not None}
    if not isinstance(given, Mapping):
        return beside and {"rope_scaling": None, **beside}
    nested = [value for value in given.values() if isinstance(value, Mapping)]
    if not nested:
        return _older(given, beside)
    full, local = given.get("full_attention"), given.get("sliding_attention")
    if not isinstance(full, Mapping) or full.get("rope_type", "default") not in KINDS:
        return {}
    found = _older(full, beside)
    if isinstance(local, Mapping) and local.get("rope_theta") is not None:
        found["rope_local_base_freq"] = local["rope_theta"]
    return found


def _older(parameters: Mapping[str, Any], beside: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: parameters[key] for key in BESIDE_ROPE if parameters.get(key) is not None}
    scaling = {key: value for key, value in parameters.items() if key not in BESIDE_ROPE}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    return {**beside, **kept, "rope_scaling": None if kind == "default" else scaling}


def with_older_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A ``config.json`` with the names of version 4 beside those of 5, sorted, without keys about
    this machine. Both versions read the same values from it."""
    found = {key: value for key, value in config.items() if key not in LOCAL}
    found |= older_rope(config)
    if config.get("dtype") is not None:
        found["torch_dtype"] = config["dtype"]  # the name until 4.56
    # where it is missing, version 4 ties by the class's default, which may be different
    found.setdefault("tie_word_embeddings", False)
    return dict(sorted(found.items()))


def laid_over(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` updated with ``overrides``, whichever spellings they use.

    Version 5 would ignore a ``rope_theta`` beside the ``rope_parameters`` of the files, and take
    the default where only ``rope_scaling`` is overridden.
    """
    if not set(ROPE) & overrides.keys():
        return {**config, **overrides}
    rest = {key: value for key, value in config.items() if key not in ROPE}
    if "rope_parameters" in overrides:
        return {**rest, **overrides}
    older = older_rope(config)
    nested = "rope_local_base_freq" in older and "rope_local_base_freq" not in config
    return {**(config if nested else {**rest, **older}), **overrides}


def settle_tokenizer(folder: Path) -> None:
    """Make ``tokenizer_config.json`` name a class that versions 4 and 5 and vLLM know.

    A published file that already does is not changed.
    """
    file = folder / "tokenizer_config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):  # reported where the tokenizer is loaded
        return
    if isinstance(config, dict) and (settled := _settled(config)) != config:
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(settled, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _settled(config: dict[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in config.items() if key not in LOCAL}
    if found.get("backend") == "tokenizers":
        del found["backend"]
    if found.get("tokenizer_class") in NEW_CLASSES:
        found["tokenizer_class"] = GENERIC
    if found.get("tokenizer_class") == GENERIC:
        # without this version 4 also gives token types, which no decoder model accepts
        found.setdefault("model_input_names", ["input_ids", "attention_mask"])
    # version 5 has a list there, and version 4 a map of attributes, which 5 also reads
    extra = found.get("extra_special_tokens")
    if isinstance(extra, list):
        del found["extra_special_tokens"]
        if extra:
            found["additional_special_tokens"] = [
                *(t for t in found.get("additional_special_tokens") or () if t not in extra), *extra
            ]  # fmt: skip
    named = found.pop("model_specific_special_tokens", None)
    if isinstance(named, dict) and named:
        found["extra_special_tokens"] = {**(found.get("extra_special_tokens") or {}), **named}
    return found
