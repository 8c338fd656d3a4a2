"""Plain configuration from the command line: composed by Hydra, or read from a run.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easyllm.cli import diagnosis, interpolation
from easyllm.cli.command_line import quoting
from easyllm.cli.command_line.overlay import has, lay, tree
from easyllm.cli.command_line.overrides import Override, of_hydra
from easyllm.cli.composition import composition
from easyllm.cli.library import Library, absent_option
from easyllm.cli.relocation import relocated
from easyllm.spec import texts
from easyllm.spec.problems import ABSENT, Problem, SpecError
from easyllm.spec.schema import flatten

MODEL = "model"
"""The group whose option is chosen for the user where none is given."""
FROM_PATH, SMALLEST = "from_path", "tiny"
"""The options that are chosen where ``model.path`` is given, and where it is not."""


def compose(overrides: list[Override], library: Library) -> dict[str, Any]:
    """The configuration of the root file, the chosen groups and the overrides.

    Raises SpecError with all problems because of which it cannot be made.
    """
    config, _ = composed(overrides, library)
    found: list[Problem] = []
    config = interpolation.resolved(config, found)
    if found:
        raise SpecError(found)
    return config


def complete(overrides: list[Override], library: Library) -> list[Override]:
    """``overrides`` completed with the model group, and so that groups chosen on the command line
    replace those of a recipe. Raises SpecError as ``compose`` does."""
    return with_groups(with_model(overrides, library), library)


def with_model(overrides: list[Override], library: Library) -> list[Override]:
    """``overrides`` with a model group, if neither they nor a recipe choose one.

    A model at ``model.path`` is described by its own files, so no other model's configuration
    applies to it. ``~model.config`` would then delete a key that is not there, and is left out. In
    a sweep over groups each point chooses its own group. Raises SpecError as ``compose`` does.
    """
    if any(o.group and (o.key == MODEL or o.choices) for o in overrides):
        return overrides
    within = [o for o in overrides if o.delete and o.key.startswith(f"{MODEL}.")]
    config, chosen = composed([o for o in overrides if o not in within and not o.choices], library)
    if chosen.get(MODEL) is not None:
        return overrides
    swept = any(o.choices and o.key == f"{MODEL}.path" for o in overrides)
    model = config.get(MODEL)
    if not (swept or (isinstance(model, dict) and model.get("path"))):
        return [*overrides, _chosen(SMALLEST)]
    idle = [o for o in within if not has(config, o.key)]
    return [*(o for o in overrides if o not in idle), _chosen(FROM_PATH)]


def _given(key: str, value: Any) -> Override:
    return Override(key, f"++{key}={quoting.spelled(value)}", value, group=False, delete=False)


def _chosen(option: str) -> Override:
    return Override(MODEL, f"{MODEL}={option}", option, group=True, delete=False)


def with_groups(overrides: list[Override], library: Library) -> list[Override]:
    """``overrides`` with the keys of their chosen groups that a recipe gives as well.

    Hydra merges a recipe over all groups, including those of the command line, whose values would
    be lost without a message. Raises SpecError as ``compose`` does.
    """
    chosen = [
        o for o in overrides
        if o.typed and o.group and not (o.delete or o.choices) and "@" not in o.key
        if o.key not in ("recipe", "smoke")
    ]  # fmt: skip
    if not chosen or not any(o.group and o.key == "recipe" for o in overrides):
        return overrides
    groups = [o for o in overrides if o.group and not o.choices]
    config, _ = composed(groups, library)
    there = flatten(config)
    found = []
    for override in chosen:
        for option in override.options:
            package = library.package(override.key, option)
            for name, value in flatten(library.tree(override.key, option)).items():
                key = f"{package}.{name}".strip(".")
                left_open = value == "???" or "$" in str(value) or not name
                if not left_open and (key not in there or there[key] != value):
                    found.append(_given(key, value))
    return [*found, *overrides]


def composed(overrides: list[Override], library: Library) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration, not yet interpolated, and the chosen option of each group."""
    absent = [
        absent_option(library, o.key, "null" if option is None else str(option))
        for o in overrides
        if o.group and not o.delete and not o.choices and "@" not in o.key
        for option in o.options
        if option is None or not library.has(o.key, str(option))
    ]
    if absent:
        raise SpecError(absent)
    groups = [o for o in overrides if o.group or of_hydra(o.key)]
    try:
        config, chosen = composition(groups, library).copied()
    except Exception as error:  # Hydra, OmegaConf and YAML raise many kinds, including ValueError
        raise SpecError(diagnosis.problems(error, groups, library)) from error
    if library.user is not None and (several := diagnosis.several(groups, library)):
        raise SpecError(several)
    problems = [lay(config, o) for o in overrides if o not in groups and not o.choices]
    if found := [problem for problem in problems if problem]:
        raise SpecError(found)
    return config, chosen


def from_file(file: Path, overrides: list[Override]) -> dict[str, Any]:
    """The configuration in a resolved spec, with the overrides applied. Raises SpecError."""
    config = relocated(_loaded(file), file)
    path = _at(config, "path")
    found = [problem for o in overrides if (problem := lay(config, o))]
    revised = any(has(tree(o), f"{MODEL}.revision") for o in overrides)
    if _at(config, "path") != path and _at(config, "revision") and not revised:
        config[MODEL]["revision"] = None  # it belonged to the other model
    config = interpolation.resolved(config, found)
    if found:
        raise SpecError(found)
    return config


def _at(config: Mapping[str, Any], key: str) -> Any:
    """The value of a key of the model."""
    model = config.get(MODEL)
    return model.get(key) if isinstance(model, Mapping) else None


def _loaded(file: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    def wrong(message: str, remedy: str = "give RUN_DIR/run.yaml") -> SpecError:
        return SpecError([Problem(str(file), ABSENT, message, remedy)])

    if not file.is_file():
        raise wrong("no such file")
    try:
        plain: Any = OmegaConf.to_container(OmegaConf.load(file))
    except Exception as error:  # from YAML, OmegaConf or the file system
        raise SpecError([diagnosis.of_file(file, error)]) from error
    if isinstance(plain, list):
        raise wrong("holds a list, but a spec is a map of keys")
    if not isinstance(plain, Mapping):
        raise wrong("holds no map of keys, which a spec is")
    if any(map(texts.deep, plain.values())):
        raise wrong(texts.DEEP, "fix the file")
    return dict(plain)
