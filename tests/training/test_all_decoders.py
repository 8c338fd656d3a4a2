"""Every type of decoder that transformers knows, trained by pipeline and by ZeRO as by its plain
model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from easyllm.models.decoders.describe import known_types
from tests.models.decoders import QUICK
from tests.training.conftest import Small
from tests.training.decoders import Decoders, check

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
REST = [name for name in known_types() if name not in QUICK]
TOGETHER = 22
"""Types that share a launch of ranks."""


@pytest.fixture(scope="module")
def decoders(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Decoders]:
    """What the launch that trained a type left."""

    @cache
    def launched(number: int) -> Decoders:
        types = REST[number * TOGETHER : (number + 1) * TOGETHER]
        return Decoders.of(small, types, tmp_path_factory.mktemp("decoders"))

    return lambda name: launched(REST.index(name) // TOGETHER)


@pytest.mark.parametrize("name", REST)
def test_every_layout_trains_as_transformers_does(
    decoders: Callable[[str], Decoders], name: str
) -> None:
    check(decoders(name), name)
