"""On CUDA training takes only kernels that repeat their bits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from easyllm.parallelism import world


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


def test_other_errors_are_not_taken_for_it() -> None:
    assert world.unrepeatable(RuntimeError("CUDA out of memory")) is None
