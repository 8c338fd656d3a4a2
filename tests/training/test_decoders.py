"""Any decoder of transformers, trained by pipeline and by ZeRO as by its plain model."""

from __future__ import annotations

import pytest

from tests.models.decoders import QUICK
from tests.training.conftest import Small
from tests.training.decoders import Decoders, check


@pytest.fixture(scope="module")
def decoders(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Decoders:
    return Decoders.of(small, list(QUICK), tmp_path_factory.mktemp("decoders"))


@pytest.mark.parametrize("name", QUICK)
def test_every_layout_trains_as_transformers_does(decoders: Decoders, name: str) -> None:
    check(decoders, name)
