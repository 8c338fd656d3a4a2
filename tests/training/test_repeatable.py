"""On CUDA training takes only kernels that repeat their bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from easyllm.errors import UserError
from easyllm.parallelism import world
from easyllm.stages import load
from easyllm.stages.base import Rank
from tests.support import run_spec


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    fill = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill


def refused() -> RuntimeError:
    """What torch says of an operation that has no such kernel on any device."""
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
    return caught.value


def test_what_cannot_repeat_its_bits_is_named(restored: None) -> None:
    world.repeat_bits(torch.device("cuda"))
    assert torch.are_deterministic_algorithms_enabled()
    assert world.unrepeatable(refused()) == "put_ does not give the same bits each time"


def test_a_cpu_is_left_alone(restored: None) -> None:
    world.repeat_bits(torch.device("cpu"))
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("asked", [True, False])
def test_the_stage_asks_for_it(
    asked: bool, restored: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a CUDA device, which is all that is pretended here but for the training itself."""

    def training(*_: object) -> dict[str, int]:
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
        return {"steps": 1}

    monkeypatch.setattr(world, "watch", lambda *_: None)
    monkeypatch.setattr(world, "start", lambda *_: torch.device("cuda"))
    monkeypatch.setattr("easyllm.data.dataset.rows.open_rows", lambda run: None)
    monkeypatch.setattr("easyllm.training.loop.train", training)
    run = run_spec(tmp_path, {"training": {"deterministic": asked}})
    if asked:
        with pytest.raises(
            UserError, match=r"put_ does not .*; give training\.deterministic=false"
        ):
            load("train").work(run, Rank())
    else:
        assert load("train").work(run, Rank()) == {"steps": 1}


def test_other_errors_are_not_taken_for_it() -> None:
    assert world.unrepeatable(RuntimeError("CUDA out of memory")) is None
