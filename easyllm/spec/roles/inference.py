"""The role of components that generate text."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from easyllm.spec.roles.base import Component

if TYPE_CHECKING:
    from easyllm.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class InferenceEngine(Component):
    """Generates text with a model in Hugging Face's format."""

    separate_api_process: ClassVar[bool] = False
    """Whether its generation takes turns with the caller's Python code, so that a server answers
    its clients from another process. What ``load`` returns then also has ``begin`` and ``leave``
    of ``easyllm.inference.remote_engine.Generation``."""

    @abc.abstractmethod
    def load(self, model: Path, run: RunSpec) -> Any:
        """The loaded model, an ``easyllm.inference.engine_protocol.Engine``."""
