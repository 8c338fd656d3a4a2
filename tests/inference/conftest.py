from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.inference.driven import LOADED
from tests.inference.small import save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Every engine of a test is closed after it."""
    yield
    while LOADED:
        LOADED.pop().close()
