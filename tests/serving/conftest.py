from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.inference.small import save_model
from tests.serving.served import Served, spec


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served-model")
    return save_model(folder, chat=True, max_position_embeddings=4096, vocab_size=257)


@pytest.fixture(scope="session")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(spec(tmp_path_factory.mktemp("served"), model))
    yield served
    served.close()


@pytest.fixture(scope="session")
def narrow(served: Served, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server with a key and low limits, over the engine of the other one."""
    limits = {"max_queue": 2, "max_tokens": 3500, "max_prompt_tokens": 300, "max_n": 3,
              "max_body_mb": 0.01, "body_seconds": 0.5, "log_prompts": True,
              "cors_origins": ["https://chat.example.org"]}  # fmt: skip
    run = spec(tmp_path_factory.mktemp("narrow"), model, serving=limits)
    narrow = Served(run, served.engine, keys=("sesame", "mellon"))
    yield narrow
    narrow.close()
