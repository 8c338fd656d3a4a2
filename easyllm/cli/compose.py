"""Plain configuration from the command line: composed by Hydra, or read from a run.yaml."""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path
from typing import Any

from easyllm.cli.arguments import Override
from easyllm.cli.library import ROOT, Library, absent_option
from easyllm.spec.problems import Problem, SpecError

MODEL = "model"
"""The group that is chosen for a run that names none of its options."""
FROM_PATH, SMALLEST = "from_path", "tiny"
"""What is chosen where ``model.path`` is given, and where it is not."""


def compose(overrides: list[Override], library: Library) -> dict[str, Any]:
    """The configuration of the root file, the chosen groups and the overrides.

    Raises SpecError where Hydra or OmegaConf cannot make one of them.
    """
    return _composed(overrides, library)[0]


def with_model(overrides: list[Override], library: Library) -> list[Override]:
    """``overrides`` with the model group that they leave open, where no recipe chooses one.

    A model at ``model.path`` is described by its own files, so that no other model's
    configuration applies to it; ``~model.config`` then deletes nothing that is there, and is
    left out. Of a sweep over groups each point chooses by itself. Raises SpecError as
    ``compose`` does.
    """
    if any(o.group and (o.key == MODEL or o.choices) for o in overrides):
        return overrides
    within = [o for o in overrides if o.delete and o.key.startswith(f"{MODEL}.")]
    config, chosen = _composed([o for o in overrides if o not in within and not o.choices], library)
    if chosen.get(MODEL) is not None:
        return overrides
    swept = any(o.choices and o.key == f"{MODEL}.path" for o in overrides)
    model = config.get(MODEL)
    if not (swept or (isinstance(model, dict) and model.get("path"))):
        return [*overrides, _chosen(SMALLEST)]
    idle = [o for o in within if not _has(config, o.key)]
    return [*(o for o in overrides if o not in idle), _chosen(FROM_PATH)]


def _chosen(option: str) -> Override:
    return Override(MODEL, f"{MODEL}={option}", option, group=True, delete=False)


def _has(config: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(config, dict) or part not in config:
            return False
        config = config[part]
    return True


def _composed(overrides: list[Override], library: Library) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration, and the option that was chosen of each group."""
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    problems = [
        absent_option(library, o.key, "null" if o.value is None else str(o.value))
        for o in overrides
        if o.group and not o.delete and not o.choices and "@" not in o.key
        if o.value is None or not library.file(f"{o.key}/{o.value}").is_file()
    ]
    if problems:
        raise SpecError(problems)
    words = [o.text for o in overrides]
    if library.user is not None:
        words.append(f"hydra.searchpath=['file://{library.user}']")
    try:
        return copy.deepcopy(_by_hydra(library.own, tuple(words)))
    except (HydraException, OmegaConfBaseException) as error:
        raise SpecError([_composition_problem(error, overrides, library)]) from error
    except yaml.YAMLError as error:
        raise SpecError([_yaml_problem(error)]) from error


@functools.cache
def _by_hydra(folder: Path, words: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Cached, since a command composes once to see its model and once to run."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf, open_dict

    with initialize_config_dir(str(folder), version_base="1.3", job_name="easyllm"):
        config = hydra_compose(ROOT, list(words), return_hydra_config=True)
    with open_dict(config):
        chosen = dict(config.pop("hydra").runtime.choices)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return dict(plain), chosen


def from_file(file: Path, overrides: list[Override]) -> dict[str, Any]:
    """The configuration in a resolved spec with the overrides laid over it."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not file.is_file():
        raise SpecError([Problem(str(file), None, "no such file", "give RUN_DIR/run.yaml")])
    try:
        config = OmegaConf.load(file)
        if not OmegaConf.is_dict(config):
            raise SpecError([Problem(str(file), None, "is not a spec", "give RUN_DIR/run.yaml")])
        for override in overrides:
            OmegaConf.update(config, override.key, override.value, force_add=True)
        plain = OmegaConf.to_container(config, resolve=True)
    except yaml.YAMLError as error:
        raise SpecError([_yaml_problem(error, str(file))]) from error
    except (OmegaConfBaseException, UnicodeDecodeError) as error:
        message = str(error).splitlines()[0]
        raise SpecError([Problem(str(file), None, message, "mend the file")]) from error
    return dict(plain)  # type: ignore[arg-type]


def _yaml_problem(error: Any, file: str = "") -> Problem:
    mark = getattr(error, "problem_mark", None)
    where = mark.name if mark and mark.name != "<unicode string>" else file
    line = f" in line {mark.line + 1}" if mark else ""
    reason = getattr(error, "problem", None) or str(error).splitlines()[0]
    return Problem(where or "YAML", None, f"is not YAML{line}: {reason}", "mend the file")


def _composition_problem(error: Exception, overrides: list[Override], library: Library) -> Problem:
    """Hydra's complaint, told by the key it is about."""
    from hydra.errors import MissingConfigException

    cause = error.__cause__ or error
    text = " ".join(str(cause).split()) or type(cause).__name__
    missing = getattr(error, "missing_cfg_file", None)
    if isinstance(error, MissingConfigException) and missing:
        group, _, name = str(missing).rpartition("/")
        return absent_option(library, group or "defaults", name)
    key = getattr(cause, "full_key", None)
    if not key:
        quoted = re.findall(r"'([^']+)'", text)
        key = next((q for q in quoted if any(o.key == q for o in overrides)), "spec")
    message = re.split(r" full_key: | object_type=", text)[0]
    return Problem(str(key), next((o.value for o in overrides if o.key == key), None), message)
