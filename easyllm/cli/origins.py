"""Where a key's value came from. Worked out only when something has to be reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from easyllm.cli.arguments import Override
from easyllm.cli.library import ROOT, Library

Origin = Callable[[str], str]
"""From a dotted key to words such as 'command line'; empty where nothing gave it."""

COMMAND_LINE = "command line"


def of_composition(overrides: list[Override], library: Library) -> Origin:
    """Origins for what ``compose`` made."""
    layers: list[tuple[str, Any]] | None = None

    def origin(key: str) -> str:
        nonlocal layers
        if given := _on_command_line(key, overrides):
            return given
        if layers is None:
            layers = _layers(overrides, library)
        return next((file for file, tree in reversed(layers) if _holds(tree, key)), "")

    return origin


def of_file(file: str, overrides: list[Override]) -> Origin:
    """Origins for a resolved spec."""
    return lambda key: _on_command_line(key, overrides) or file


def _on_command_line(key: str, overrides: list[Override]) -> str:
    for override in reversed(overrides):
        below = not override.group and key.startswith(override.key + ".")
        if key == override.key or below:
            return COMMAND_LINE
        if override.key.startswith(key + "."):
            return COMMAND_LINE
    return ""


def _layers(overrides: list[Override], library: Library) -> list[tuple[str, Any]]:
    """(file, its tree as placed in the spec) in the order in which Hydra merges them."""
    import warnings

    import yaml
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    words = [o.text for o in overrides]
    if library.user is not None:
        words.append(f"hydra.searchpath=['file://{library.user}']")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with initialize_config_dir(str(library.own), version_base="1.3", job_name="easyllm"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            try:
                defaults = hydra.config_loader.compute_defaults_list(ROOT, words, RunMode.RUN)
            except (HydraException, yaml.YAMLError):
                return []
    layers = []
    for default in defaults.defaults:
        path = default.config_path
        if path is None or path.startswith("hydra") or path.startswith("_"):
            continue
        file = library.file(path)
        if not file.is_file():
            continue
        tree: Any = OmegaConf.to_container(OmegaConf.load(file))
        for part in reversed([p for p in (default.package or "").split(".") if p]):
            tree = {part: tree}
        layers.append((_shown(file, library), tree))
    return layers


def _shown(file: Any, library: Library) -> str:
    if file.is_relative_to(library.own):
        group = file.relative_to(library.own)
        return str(group) if group.parts[0] == "recipe" else f"conf/{group}"
    return str(file)


def _holds(tree: Any, key: str) -> bool:
    for part in key.split("."):
        if isinstance(tree, list):
            return True
        if not isinstance(tree, Mapping) or part not in tree:
            return False
        tree = tree[part]
    return True
