"""Where a key's value came from, and how it was written there. It is computed only when a problem
is reported."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easyllm.cli.command_line import quoting
from easyllm.cli.command_line.overrides import Override
from easyllm.cli.composition import composition
from easyllm.cli.library import Library

COMMAND_LINE = "command line"


class Origin:
    """Gives the origin of a dotted key, such as 'command line'; empty where nothing gave it."""

    def __init__(self, overrides: list[Override] | None = None):
        self.overrides = overrides or []

    def __call__(self, key: str) -> str:
        return COMMAND_LINE if self._on_command_line(key) else self._file(key)[0]

    def typed(self, key: str) -> str | None:
        """The text from which a plain value was read; None where that is not known."""
        given = self._on_command_line(key)
        if given is None:
            return _scalar(self._file(key)[1], key)
        if given.key == key and not given.group:
            return given.typed
        name, _, number = key.rpartition(".")
        listed = quoting.elements(given.typed or "") if given.key == name else None
        within = listed is not None and number.isdecimal() and int(number) < len(listed)
        return listed[int(number)] if listed is not None and within else None

    def quoted(self, key: str) -> str | None:
        """How to write the text at ``key`` so that it is read as text; None where the text is not
        known."""
        typed = self.typed(key)
        if typed is None:
            return None
        given = self._on_command_line(key)
        if given is None:
            return f"'{typed}'"
        if given.key == key:
            return f"{key}=\"'{typed}'\""
        listed = quoting.elements(given.typed or "") or []
        listed[int(key.rpartition(".")[2])] = f'"{typed}"'
        return f"'{given.key}=[{','.join(listed)}]'"

    def _on_command_line(self, key: str) -> Override | None:
        key = key.removeprefix("~")
        for override in reversed(self.overrides):
            if override.group and override.typed is None and not override.delete:
                continue  # chosen for the user
            below = not override.group and key.startswith(override.key + ".")
            if key == override.key or below or override.key.startswith(key + "."):
                return override
        return None

    def _file(self, key: str) -> tuple[str, Any]:
        """The file's name as it is shown, and its place in the spec as (package, path)."""
        return "", None


class OfWords(Origin):
    """Origins for problems with the words themselves."""

    def __call__(self, key: str) -> str:
        return COMMAND_LINE


class OfComposition(Origin):
    """Origins for a configuration that ``compose`` made."""

    def __init__(self, overrides: list[Override], library: Library):
        super().__init__(overrides)
        self.library = library

    @functools.cached_property
    def _layers(self) -> list[tuple[str, Any, Any]]:
        return _layers(self.overrides, self.library)

    def __call__(self, key: str) -> str:
        given = self._on_command_line(key)
        if given is not None and given.key == key and given.group:
            return self._file(key)[0] or COMMAND_LINE  # the problem may be in the file
        return super().__call__(key)

    def _file(self, key: str) -> tuple[str, Any]:
        found = ((file, place) for file, tree, place in reversed(self._layers) if _holds(tree, key))
        return next(found, ("", None))


class OfFile(Origin):
    """Origins for a resolved spec."""

    def __init__(self, file: Path, overrides: list[Override]):
        super().__init__(overrides)
        self.file = file

    def _file(self, key: str) -> tuple[str, Any]:
        return str(self.file), ("", self.file)


def _scalar(place: Any, key: str) -> str | None:
    """The text of the value at a key of a YAML file: (package, path)."""
    import yaml

    if place is None:
        return None
    package, path = place
    try:
        node: Any = yaml.compose(path.read_text("utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        return None
    for part in key.removeprefix(f"{package}.").split("."):
        if isinstance(node, yaml.MappingNode):
            found = [value for name, value in node.value if name.value == part]
            node = found[-1] if found else None
        elif isinstance(node, yaml.SequenceNode):
            within = part.isdecimal() and int(part) < len(node.value)
            node = node.value[int(part)] if within else None
    return node.value if isinstance(node, yaml.ScalarNode) else None


def _layers(overrides: list[Override], library: Library) -> list[tuple[str, Any, Any]]:
    """(file, its tree as placed in the spec, its place) in the order in which Hydra merges
    them."""
    from omegaconf import OmegaConf

    layers = []
    try:
        for path, package, contents in composition(overrides, library).files:
            file = library.file(path)
            if not file.is_file():
                continue
            tree: Any = OmegaConf.to_container(contents)
            for part in reversed([p for p in package.split(".") if p]):
                tree = {part: tree}
            layers.append((_shown(file, library), tree, (package, file)))
    except Exception:  # from Hydra, OmegaConf and YAML: problems with the files are reported then
        return []
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
        if not isinstance(tree, Mapping):
            return False
        below = [value for name, value in tree.items() if str(name) == part]
        if not below:
            return False
        tree = below[0]
    return True
