"""Fields of the spec's dataclasses."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def component(target: str) -> Any:
    """A component field whose class is ``target`` unless the spec names another."""
    return field(metadata={"target": target})


def nested(cls: type) -> Any:
    """A field holding another dataclass of the spec, by default in its default state."""
    return field(default_factory=cls)


def empty() -> Any:
    """A map by name, empty by default."""
    return field(default_factory=dict)
