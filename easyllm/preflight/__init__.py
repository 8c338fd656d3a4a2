"""Checks of what a spec needs on this machine; every problem is found before anything starts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from easyllm.errors import UserError
from easyllm.models.families import family_named
from easyllm.models.source import local_config
from easyllm.parallelism import partition
from easyllm.parallelism.layouts import Pipeline
from easyllm.preflight import described, machine, places
from easyllm.spec.checks import config_problems
from easyllm.spec.model import published_config, trainable
from easyllm.spec.model.dimensions import shape_problems
from easyllm.spec.problems import Problem
from easyllm.spec.run import RunSpec


def settled(run: RunSpec) -> RunSpec:
    """``run`` with the model family that its local ``config.json`` names, where the spec names
    none."""
    model = run.model
    if model.family is None:
        model_type = _published(run).get("model_type")
        if isinstance(model_type, str) and model_type:
            return replace(run, model=replace(model, family=family_named(model_type)))
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
    """The model's configuration, from the spec or the folder at ``model.path``; empty where neither
    has a readable one."""
    model = run.model
    try:
        return model.config or (local_config(model.path) if model.path else None) or {}
    except UserError:  # reported by of_model
        return {}


def problems(run: RunSpec) -> Iterator[Problem]:
    """Files, models and devices that are missing or do not fit. Reads small files only.

    Without stages only the spec is checked: sources and models must exist, devices and optional
    packages need not. For a run that another machine owns, only what this machine needs to serve it
    is checked.
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
    """Problems with the configuration in the model's folder."""
    model = run.model
    if model.config or not model.path:
        return
    config = _published(run)
    if not config:
        return
    if model.family is None:
        yield Problem(
            "model.path", model.path, "its config.json names no model_type",
            "fetch it again, or give model.family._target_",
        )  # fmt: skip
        return
    yield from shape_problems(run, model.family, {**config, **model.overrides})


def _trained(run: RunSpec) -> Iterator[Problem]:
    """Patterns that match nothing in the model, and pipeline stages in which nothing is trained."""
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
