"""Every type of decoder that transformers knows, trained by pipeline and by ZeRO as by its plain
model."""

from __future__ import annotations

import pytest

from easyllm.models.decoders.describe import known_types
from tests.models.decoders import QUICK
from tests.training.conftest import Small
from tests.training.decoders import Decoders, check

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
REST = [name for name in known_types() if name not in QUICK]
TOGETHER = 22
"""Types that share a launch of ranks."""
LAUNCHES = [REST[begin : begin + TOGETHER] for begin in range(0, len(REST), TOGETHER)]


@pytest.fixture(scope="module")
def decoders(
    request: pytest.FixtureRequest, small: Small, tmp_path_factory: pytest.TempPathFactory
) -> Decoders:
    return Decoders.of(small, request.param, tmp_path_factory.mktemp("decoders"))


@pytest.mark.parametrize(
    ("decoders", "name"),
    [(types, name) for types in LAUNCHES for name in types],
    indirect=["decoders"],
    ids=REST,
)
def test_every_layout_trains_as_transformers_does(decoders: Decoders, name: str) -> None:
    check(decoders, name)
