from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
