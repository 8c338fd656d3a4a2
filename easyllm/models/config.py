"""The Hugging Face configuration of a run's model."""

from __future__ import annotations

import copy
import functools
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

import easyllm.models.custom  # noqa: F401  registers what transformers does not have
from easyllm.errors import UserError
from easyllm.models import tokenizer_files
from easyllm.models.compatible import laid_over, with_older_keys
from easyllm.models.families import family_named
from easyllm.models.source import folder
from easyllm.models.text_part import text_config
from easyllm.paths import RunPaths
from easyllm.spec.roles import Family
from easyllm.spec.run import RunSpec

DESCRIPTIVE = frozenset(
    "architectures auto_map bos_token_id dtype eos_token_id pad_token_id torch_dtype "  # noqa: SIM905
    "transformers_version use_cache".split()
)
"""Keys that change no dimension; a group and the files of its model may differ in them."""

AS_IT_IS = "give model=from_path to take the model as it is, or the group that belongs to it"
"""The remedy where ``model.config`` and ``model.path`` are of different models."""


def model_folder(run: RunSpec) -> Path | None:
    """The local folder of ``model.path``, which is downloaded or converted first if necessary."""
    if run.model.path is None:
        return None
    model = run.model
    with_weights = model.init == "pretrained"
    return _fetched(run.model.path, RunPaths(run).models, with_weights, model.revision)


@functools.cache
def _fetched(path: str, models: Path, with_weights: bool, revision: str | None) -> Path:
    """Called once in each process: a hub that does not answer must not stop a running training."""
    return folder(path, models, with_weights, revision)


def family_of(run: RunSpec, model_type: str) -> Family:
    """The family that trains models of this type. Raises UserError where there is none."""
    family = run.model.family or family_named(model_type)
    if family.model_type != model_type:
        raise UserError(
            f"model.family reads models of type {family.model_type}, but the configuration says "
            f"{model_type}; leave model.family out"
        )
    return family


def hf_config(run: RunSpec) -> PretrainedConfig:
    """``model.path``'s configuration, or ``model.config``, updated with ``model.overrides``.

    Raises UserError where the path's files contradict ``model.config``, the values do not make a
    model, or no family supports it.
    """
    model, source = run.model, model_folder(run)
    file = source and source / "config.json"
    published = text_config(json.loads(file.read_text("utf-8"))) if file else {}
    if source:
        _agree(run, published, source)
    values = laid_over(published or model.config, model.overrides)
    model_type = values.get("model_type") or (model.family and model.family.model_type)
    if not model_type:
        raise UserError("model.config.model_type is not given; give model.family or the key")
    if why := family_of(run, model_type).unusable(values)[0]:
        raise UserError(f"model.path: {why}")
    config = _built(model_type, values)
    positions = getattr(config, "max_position_embeddings", run.data.seq_len)
    if run.data.seq_len > positions:
        raise UserError(
            f"data.seq_len={run.data.seq_len}: the model has {positions} "
            f"positions; give at most that, or model.overrides.max_position_embeddings"
        )
    # rows longer than Qwen's seq_length train its plain positions, so they must not be stretched at
    # inference
    if run.data.seq_len > getattr(config, "seq_length", run.data.seq_len):
        config.seq_length = run.data.seq_len
    return config


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        # a group need not repeat everything: files add, for example, how images are placed
        return ours.keys() <= theirs.keys() and all(_same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-6)  # GGUF stores them in fp32
    return bool(ours == theirs)


def write_description(
    run: RunSpec, config: PretrainedConfig, to: Path, conversations: bool
) -> None:
    """Write the files beside the weights: configuration, generation defaults, tokenizer.

    If ``conversations`` were trained, generation also ends with the assistant's turn.
    """
    config.dtype = run.model.dtype
    described(config).save_pretrained(to)  # with the class of a model that is not in transformers
    write_config(to, json.loads((to / "config.json").read_text("utf-8")))
    tokenizer_files.copy(RunPaths(run).store.tokenizer, to)
    source = model_folder(run)
    published = source / "generation_config.json" if source else None
    if published and published.exists() and run.model.init == "pretrained":
        shutil.copyfile(published, to / published.name)
    else:
        pad = config.eos_token_id if config.pad_token_id is None else config.pad_token_id
        GenerationConfig(
            bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=pad
        ).save_pretrained(to)
    if conversations:
        _end_with_turns(run, config, to)


def write_config(folder: Path, values: dict[str, Any]) -> None:
    """Write ``config.json`` with the names of transformers 4 and 5."""
    text = json.dumps(with_older_keys(values), indent=2) + "\n"
    (folder / "config.json").write_text(text, "utf-8")


def _end_with_turns(run: RunSpec, config: PretrainedConfig, folder: Path) -> None:
    """Add the tokens that end the assistant's turn to those that end generation.

    A base model names only its end of sequence, which for example ChatML never trains. An engine
    that generates from this folder would continue with a user's turn that the model makes up.
    """
    try:
        turn_ends = run.data.template.stop_tokens(AutoTokenizer.from_pretrained(folder))
    except UserError:  # tokens that another program made, which the run's template may not fit
        return
    file = folder / "generation_config.json"
    values = json.loads(file.read_text("utf-8"))
    stated = values.get("eos_token_id", config.eos_token_id)
    ends = stated if isinstance(stated, list) else [] if stated is None else [stated]
    if added := [end for end in turn_ends if end not in ends]:
        values["eos_token_id"] = [*ends, *added]
        file.write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def described(config: PretrainedConfig) -> PretrainedConfig:
    """``config`` with the name of its model class."""
    made: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    config.architectures = [made.__name__]
    return config


def _built(model_type: str, values: dict[str, Any]) -> PretrainedConfig:
    try:
        # a copy, because transformers changes the maps that it is given
        dimensions = {k: copy.deepcopy(v) for k, v in values.items() if k != "model_type"}
        return AutoConfig.for_model(model_type, **dimensions)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise UserError(
            f"model.config and model.overrides make no {model_type} model: {error}"
        ) from error


def _agree(run: RunSpec, published: dict[str, Any], source: Path) -> None:
    """The group's dimensions must be those of the files, except for what overrides change."""
    model = run.model
    if not model.config:
        return
    model_type = published.get("model_type", "")
    stated_type = model.config.get("model_type", model_type)
    if stated_type != model_type:
        raise UserError(
            f"model.config.model_type={stated_type}, but {source / 'config.json'} says "
            f"{model_type}; {AS_IT_IS}"
        )
    # built first, so that defaults and older spellings compare equal
    ours = _built(model_type, dict(model.config)).to_dict()
    theirs = _built(model_type, published).to_dict()
    for key in ours:
        stated = key in model.config or key == "rope_parameters"
        if not stated or key in DESCRIPTIVE or key in model.overrides:
            continue
        if not _same(ours[key], theirs.get(key)):
            raise UserError(
                f"model.config.{key}={ours[key]}, but {source / 'config.json'} says "
                f"{theirs.get(key)}; {AS_IT_IS}, or model.overrides.{key} to change it"
            )
