"""Hydra's composition of groups, and the files that it was made from."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easyllm.cli.command_line.overrides import Override, of_hydra
from easyllm.cli.library import ROOT, Library


@dataclass(frozen=True)
class Composition:
    pickled: bytes
    """The configuration, not yet interpolated, and the chosen option of each group."""
    files: list[tuple[str, str, Any]]
    """In the order in which Hydra merged them: the path in a folder of groups, the package where
    the contents were placed, and the contents as OmegaConf's node."""

    def copied(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The configuration, not yet interpolated, and the chosen option of each group."""
        found: tuple[dict[str, Any], dict[str, Any]] = pickle.loads(self.pickled)
        return found


def composition(overrides: Iterable[Override], library: Library) -> Composition:
    """What Hydra makes of the overrides that choose groups, and of its own. Raises what Hydra,
    OmegaConf and YAML raise."""
    words = [o.text for o in overrides if o.group or of_hydra(o.key)]
    if library.user is not None:
        words.append(f"hydra.searchpath=['file://{library.user}']")
    return composed_by_hydra(library.own, tuple(words))


@functools.cache
def composed_by_hydra(folder: Path, words: tuple[str, ...]) -> Composition:
    """Cached, because a command composes the same groups more than once, with other values.
    ``words`` are overrides as Hydra reads them."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf, open_dict

    with (
        initialize_config_dir(str(folder), version_base="1.3", job_name="easyllm"),
        _recorded() as files,
    ):
        config = compose(ROOT, list(words), return_hydra_config=True)
    with open_dict(config):
        chosen = dict(config.pop("hydra").runtime.choices)
    plain: Any = OmegaConf.to_container(config)
    return Composition(pickle.dumps((plain, chosen)), files)


@contextmanager
def _recorded() -> Iterator[list[tuple[str, str, Any]]]:
    """The files that Hydra merges within the block. Hydra 1.3 does not give them, and computing
    them again takes as long as the composition."""
    from hydra._internal import config_loader_impl

    loader: Any = config_loader_impl

    found: list[tuple[str, str, Any]] = []
    create = loader.create_defaults_list

    def recording(repo: Any, *arguments: Any, **named: Any) -> Any:
        defaults = create(repo, *arguments, **named)
        for default in defaults.defaults:
            path = default.config_path
            if path is None or path.startswith(("hydra", "_")):
                continue
            if loaded := repo.load_config(path):
                found.append((path, default.package or "", loaded.config))
        return defaults

    loader.create_defaults_list = recording
    try:
        yield found
    finally:
        loader.create_defaults_list = create
