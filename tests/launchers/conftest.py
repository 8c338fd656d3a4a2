"""Two machines for the tests that need them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.launchers.machines import Machines, lacking


@pytest.fixture(scope="module")
def cable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    if reason := lacking():
        pytest.skip(reason)
    made = Machines(tmp_path_factory.mktemp("machines"))
    try:
        made.make()
        yield made
    finally:
        made.remove()


@pytest.fixture
def machines(cable: Machines) -> Iterator[Machines]:
    """The machines, both running; what a test leaves there is ended."""
    cable.boot()
    yield cable
    cable.cut()
