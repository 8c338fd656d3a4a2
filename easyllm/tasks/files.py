"""The files that a task of lm-eval names. Light."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Reads lm-eval's own tags, such as ``!function``, as null."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def read_by(task: Path) -> list[Path]:
    """The local ``data_files`` of the task in a YAML file; none where it cannot be read."""
    try:
        content = yaml.load(task.read_text("utf-8"), _Loader)
    except (OSError, ValueError, yaml.YAMLError):
        return []
    arguments = content.get("dataset_kwargs") if isinstance(content, Mapping) else None
    given = arguments.get("data_files") if isinstance(arguments, Mapping) else None
    return [task.parent / text for text in _texts(given) if "://" not in text]


def _texts(given: Any) -> Iterator[str]:
    if isinstance(given, str):
        yield given
    elif isinstance(given, Mapping):
        for value in given.values():
            yield from _texts(value)
    elif isinstance(given, list):
        for value in given:
            yield from _texts(value)
