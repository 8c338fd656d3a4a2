"""Keys and values of older versions are refused, and the new name is said."""

from __future__ import annotations

import pytest

from easyllm.runfile import read_config
from easyllm.spec.renamed import KEYS, VALUES
from easyllm.spec.schema import flatten, write
from tests.spec.test_schema import DEMO, put


@pytest.mark.parametrize(("old", "new"), KEYS.items())
def test_a_key(old: str, new: str) -> None:
    run, problems = read_config(DEMO)
    assert not problems and new in flatten(write(run))
    (problem,) = read_config(put(DEMO, old, 3))[1]
    assert (problem.key, problem.value) == (old, 3)
    assert problem.message == f"is now called {new}" and new in problem.remedy


@pytest.mark.parametrize(("old", "new"), VALUES.items())
def test_a_value(old: tuple[str, str], new: str) -> None:
    key, value = old
    (problem,) = read_config(put(DEMO, key, value))[1]
    assert problem.message == f"is now called {new}" and problem.remedy == f"give {key}={new}"
    assert not read_config(put(DEMO, key, new))[1]
