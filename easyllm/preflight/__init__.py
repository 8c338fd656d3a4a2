"""What a spec needs of the outside world. Every problem at once, nothing started."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from easyllm.errors import UserError
from easyllm.models.families import FAMILIES, family_named
from easyllm.models.source import local_config
from easyllm.parallelism import partition
from easyllm.parallelism.layouts import Pipeline
from easyllm.preflight import described, machine, places
from easyllm.spec.checks import config_problems
from easyllm.spec.model import published_config, trainable
from easyllm.spec.model.dimensions import shape_problems
from easyllm.spec.problems import Problem, near
from easyllm.spec.run import RunSpec


def settled(run: RunSpec) -> RunSpec:
    """``run`` with the model family that its local ``config.json`` names, where it names none."""
    model = run.model
    if model.family is None:
        family = family_named(str(_published(run).get("model_type")))
        if family is not None:
            return replace(run, model=replace(model, family=family))
    return run


def of_model(run: RunSpec) -> Iterator[Problem]:
    """What is wrong with the model's configuration by itself, where the spec gives it and in the
    folder at ``model.path``."""
    model = run.model
    yield from config_problems(run, model.family)
    if model.config or not model.path:
        return
    try:
        published = local_config(model.path) or {}
    except UserError as error:
        yield Problem("model.path", model.path, str(error), "give a folder or a hub id")
        return
    for key, must in published_config.wrong(published):
        if key not in model.overrides:
            yield Problem(
                "model.path", model.path,
                f"its config.json gives {key} {published[key]!r:.40}, which must be {must}",
                f"fix that file, or give model.overrides.{key}=<{must}>",
            )  # fmt: skip


def _published(run: RunSpec) -> Mapping[str, Any]:
    """The model's configuration, of the spec or the folder at ``model.path``; empty where neither
    gives one that can be read."""
    model = run.model
    try:
        return model.config or (local_config(model.path) if model.path else None) or {}
    except UserError:  # reported by of_model
        return {}


def problems(run: RunSpec) -> Iterator[Problem]:
    """What is missing or does not fit, of files, models and devices. Reads small files only.

    With no stages the spec alone is checked: sources and models must be there, devices
    and optional packages need not. Of a run that another machine owns, only what this one
    needs to serve it.
    """
    if run.stages and run.hardware.launcher.follows(run.hardware.nodes):
        yield from machine.problems(run)
        return
    yield from places.problems(run)
    yield from described.problems(run)
    yield from _model(run)
    yield from _trained(run)
    if run.stages:
        yield from machine.problems(run)


def _model(run: RunSpec) -> Iterator[Problem]:
    """What the model folder's own configuration does not allow."""
    model = run.model
    if model.config or not model.path:
        return
    config = _published(run)
    if not config:
        return
    if model.family is None:
        model_type = str(config.get("model_type"))
        yield Problem(
            "model.path", model.path,
            f"its config.json is of model_type {model_type}, which no family here has",
            near(model_type, [family.model_type for family in FAMILIES])
            or "name your own family in model.family._target_",
        )  # fmt: skip
        return
    yield from shape_problems(run, model.family, {**config, **model.overrides})


def _trained(run: RunSpec) -> Iterator[Problem]:
    """Patterns that match nothing of the model, and stages of which nothing is trained."""
    model, layout = run.model, run.parallelism
    published = _published(run)
    if model.family is None or not published or not (run.training.freeze or run.training.adapter):
        return
    config = {**published, **model.overrides}
    if any(published_config.wrong(config)):  # reported with the keys
        return
    try:
        layers = model.family.param_specs(config)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):  # reported with the shapes
        return
    if layers is None:
        return
    found = list(trainable.problems(run, layers))
    yield from found
    if found or not isinstance(layout, Pipeline):
        return
    with contextlib.suppress(UserError):  # reported with the layout
        bounds = partition.stage_bounds(layers, layout, run.data.seq_len)
        for stage in partition.idle(layers, bounds, trainable.trained(run, layers)):
            adapter = run.training.adapter
            yield Problem(
                "training.adapter.targets" if adapter else "training.freeze",
                list(adapter.patterns) if adapter else run.training.freeze,
                partition.left_idle(layers, bounds, stage), partition.IDLE,
                also=("parallelism.pipeline_stages", "parallelism.stage_boundaries"),
            )  # fmt: skip
