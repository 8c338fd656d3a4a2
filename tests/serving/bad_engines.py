"""Engines that behave badly."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easyllm.inference.engine_protocol import Engine
from easyllm.inference.engines import Transformers
from easyllm.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class Slow(Transformers):
    """Takes an hour to load."""

    def load(self, model: Path, run: RunSpec) -> Engine:
        time.sleep(3600)
        return super().load(model, run)


@dataclass(frozen=True, kw_only=True)
class Breaking(Transformers):
    """Stops generating half a second after it was first asked."""

    def load(self, model: Path, run: RunSpec) -> Engine:
        engine: Any = super().load(model, run)
        begin = engine.begin

        def breaking(*asked: Any) -> None:
            begin(*asked)
            threading.Timer(0.5, engine.close).start()

        engine.begin = breaking
        return engine
