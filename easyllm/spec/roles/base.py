"""The base class of all components."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from easyllm.spec.problems import Problem

if TYPE_CHECKING:
    from easyllm.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class Component(abc.ABC):  # noqa: B024  (the roles below have the abstract methods)
    """Base of every role."""

    requires: ClassVar[Mapping[str, str]] = {}
    """Optional packages that it imports, each with the extra of easyllm that installs it."""

    def problems(self, key: str, run: RunSpec) -> Iterator[Problem]:
        """What is wrong with this component in this run; no I/O.

        ``key`` is the dotted key of the component.
        """
        return iter(())

    def missing(self, key: str, run: RunSpec) -> Iterator[Problem]:
        """What this machine lacks that the component needs in this run's stages.

        Called before anything starts. It may read small files and ask programs for their version.
        """
        return iter(())
