"""Every type of decoder that transformers knows, trained by pipeline and by ZeRO as by its plain
model."""

from __future__ import annotations

import pytest

from easyllm.models.decoders.describe import known_types
from tests.models.decoders import QUICK
from tests.training.conftest import Small
from tests.training.decoders import Decoders, check

pytestmark = pytest.mark.slow
REST = [name for name in known_types() if name not in QUICK]


@pytest.fixture(scope="module")
def decoders(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Decoders:
    return Decoders.of(small, REST, tmp_path_factory.mktemp("decoders"))


@pytest.mark.parametrize("name", REST)
def test_every_layout_trains_as_transformers_does(decoders: Decoders, name: str) -> None:
    check(decoders, name)
