"""The optimizer's state by parameter name: split, joined, and what cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from easyllm.errors import UserError
from easyllm.parallelism.fragments import MASTER, Fragment, state_of
from easyllm.training.checkpointing import optimizer_state

SIZE = 10


@dataclass
class Holder:
    """What an engine shows of its optimizer."""

    parts: list[Fragment]
    optimizer: torch.optim.Optimizer

    def fragments(self) -> Iterator[Fragment]:
        return iter(self.parts)

    own_fragments = fragments


def stepped(held: torch.Tensor, first: float) -> torch.optim.Optimizer:
    """AdamW after a step with the gradient ``first, first + 1, …``."""
    optimizer = torch.optim.AdamW([held], lr=0.1)
    held.grad = torch.arange(held.numel(), dtype=torch.float32).view_as(held) + first
    optimizer.step()
    return optimizer


LARGEST = 6 * 4
"""Bytes of the longest vector in ``halves``."""


def halves(folder: Path, low: bool = False, limit: float = 1e9) -> None:
    """Two ranks' files: elements 0 to 5 after one of padding, and 6 to 9 before two of it."""
    for rank, (begin, length, offset, size) in enumerate([(0, 6, 1, 7), (6, 4, 0, 6)]):
        held = torch.zeros(size, requires_grad=True)
        optimizer = stepped(held, begin - offset)
        parts = [Fragment("a.weight", begin, length, held, offset, low)]
        holder: Any = Holder(parts, optimizer)
        for number, share in enumerate(optimizer_state.shares(holder, limit)):
            assert sum(tensor.nbytes for tensor in share.values()) < limit + LARGEST
            save_file(share, folder / optimizer_state.file_name(rank, number))


def whole(low: bool = False) -> Holder:
    held = torch.zeros(2, SIZE // 2, requires_grad=True)
    return Holder([Fragment("a.weight", 0, SIZE, held, 0, low)], torch.optim.AdamW([held]))


@pytest.mark.parametrize(("limit", "piece", "files"), [(1e9, 1e9, 2), (20, 1e9, 4), (8, 8, 10)])
def test_what_two_ranks_held_is_taken_up_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float, piece: float, files: int
) -> None:
    monkeypatch.setattr(optimizer_state, "PIECE_BYTES", piece)
    halves(tmp_path, limit=limit)
    assert len(list(tmp_path.iterdir())) == files
    holder = whole()
    optimizer_state.load(holder, tmp_path)  # type: ignore[arg-type]
    held = torch.zeros(2, SIZE // 2, requires_grad=True)
    expected = stepped(held, 0.0).state[held]
    found: Any = holder.optimizer.state[holder.parts[0].held]
    assert set(found) == set(expected) == {"step", "exp_avg", "exp_avg_sq"}
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_fp32_copies_move_too(tmp_path: Path) -> None:
    halves(tmp_path, low=True)
    holder = whole(low=True)
    optimizer_state.load(holder, tmp_path)  # type: ignore[arg-type]
    held = torch.zeros(2, SIZE // 2, requires_grad=True)
    stepped(held, 0.0)
    assert torch.equal(holder.parts[0].held, held)
    assert MASTER not in holder.optimizer.state[holder.parts[0].held]


def test_a_missing_part_is_told(tmp_path: Path) -> None:
    halves(tmp_path)
    (tmp_path / "rank-00001.safetensors").unlink()
    with pytest.raises(UserError, match=r"has 6 of 10 elements of exp_avg of a\.weight"):
        optimizer_state.load(whole(), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match=r"has no master of a\.weight; give training\.resume=weights"
    ):
        optimizer_state.load(whole(low=True), tmp_path)  # type: ignore[arg-type]


def test_an_optimizer_whose_state_is_not_by_element_is_told() -> None:
    held = torch.zeros(4, 3, requires_grad=True)
    optimizer = torch.optim.Adafactor([held])
    held.grad = torch.ones(4, 3)
    optimizer.step()
    with pytest.raises(UserError, match="Adafactor keeps row_var of shape"):
        state_of(Fragment("a.weight", 0, 12, held, 0, low_precision=False), optimizer)
