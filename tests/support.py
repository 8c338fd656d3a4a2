"""What tests share: specs built from plain configuration, and the spine's small inputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from easyllm.data.executors.components import java_problem
from easyllm.runfile import read_config
from easyllm.spec.problems import SpecError
from easyllm.spec.run import RunSpec

LLAMA = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
"""A Llama small enough for fp32 steps in milliseconds."""

PATIENCE = 300.0
"""Seconds after which a test gives up: many times what anything it waits for takes."""

needs_java = pytest.mark.skipif(bool(java_problem()), reason=f"Spark {java_problem()}")


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``base``, map by map."""
    both = dict(base)
    for key, value in over.items():
        old = both.get(key)
        both[key] = (
            merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
        )
    return both


def run_spec(folder: Path, config: Mapping[str, Any]) -> RunSpec:
    """A resolved spec whose run, store and model cache lie under ``folder``."""
    places = {
        "run_dir": str(folder / "run"),
        "data": {"dir": str(folder / "store")},
        "model": {"cache": str(folder / "models")},
        "hardware": {"device": "cpu"},
    }
    run, problems = read_config(merged(places, config))
    if problems:
        raise SpecError(problems)
    return run
