"""What a spec needs of the outside world. Every problem at once, nothing started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from easyllm.models.families import FAMILIES, family_named
from easyllm.models.source import local_config
from easyllm.preflight import machine, places
from easyllm.spec.checks import config_problems, shape_problems
from easyllm.spec.problems import Problem, near
from easyllm.spec.run import RunSpec


def settled(run: RunSpec) -> RunSpec:
    """``run`` with the model family that its local ``config.json`` names, where it names none."""
    model = run.model
    if model.family is None:
        config = model.config or (local_config(model.path) if model.path else None) or {}
        family = family_named(str(config.get("model_type")))
        if family is not None:
            return replace(run, model=replace(model, family=family))
    return run


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
    yield from _model(run)
    if run.stages:
        yield from machine.problems(run)


def _model(run: RunSpec) -> Iterator[Problem]:
    """What the model folder's own configuration does not allow."""
    model = run.model
    if model.config or not model.path:
        return
    config = local_config(model.path)
    if config is None:
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
    yield from config_problems(run, model.family)
    yield from shape_problems(run, model.family, {**config, **model.overrides})
