"""The stages, one file each."""

from __future__ import annotations

import importlib

from easyllm.spec.run import STAGES
from easyllm.stages.base import Stage


def load(name: str) -> Stage:
    """The stage called ``name``, one of ``STAGES``."""
    assert name in STAGES, name
    module = importlib.import_module(f"easyllm.stages.{name}")
    stage: Stage = getattr(module, name.capitalize())()
    return stage
