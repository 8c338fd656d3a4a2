"""A resolved spec on disk, which the parent writes and every rank reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easyllm.components import resolver
from easyllm.files import atomic_write
from easyllm.spec.problems import Problem, SpecError
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import read, write


def read_config(config: Mapping[str, Any]) -> tuple[RunSpec, list[Problem]]:
    """The spec in plain configuration, with its components imported as ``components`` says."""
    return read(config, resolver(*places(config)))


def places(config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The modules in ``components.allow`` and the folders in ``components.path``."""
    components = config.get("components")
    components = components if isinstance(components, Mapping) else {}

    def texts(name: str) -> list[str]:
        value = components.get(name)
        return [v for v in value if isinstance(v, str)] if isinstance(value, list) else []

    return texts("allow"), texts("path")


def load_plain(file: Path) -> dict[str, Any]:
    """The configuration in a run.yaml, not yet checked."""
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def load(file: Path) -> RunSpec:
    """The spec in a run.yaml. Raises SpecError where it is not a valid one."""
    run, problems = read_config(load_plain(file))
    if problems:
        raise SpecError(problems)
    return run


def save(run: RunSpec, file: Path) -> None:
    import yaml

    with atomic_write(file) as temporary:
        text = yaml.safe_dump(write(run), sort_keys=False, allow_unicode=True, width=100)
        temporary.write_text(text, "utf-8")
