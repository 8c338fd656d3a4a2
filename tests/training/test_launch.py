"""What tests of training share: a case that ends the ranks does not hide the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.conftest import RESUMED, Small, launch


def test_a_case_that_ends_the_ranks_fails_alone(small: Small, tmp_path: Path) -> None:
    config = small.config("tied", RESUMED["zero1"], 1)
    config["training"] |= {"steps": 1}
    names = ("first", "killed", "last")
    cases = [{"name": name, "config": config} for name in names]
    cases[1]["killed_saving"] = (0, 1)
    trained = launch(tmp_path, 1, cases)
    assert len(trained.metrics("first")) == len(trained.metrics("last")) == 1
    with pytest.raises(pytest.fail.Exception, match="killed ended the ranks"):
        trained.seen("killed")
