"""The optimizer's state on disk, by parameter name, so that any layout can load it.

``optimizer/rank-00003.safetensors``, ``rank-00003-00001.safetensors`` and so on hold rank 3's part
of it, under ``KEY/BEGIN/PARAMETER``: ``exp_avg/4096/model.norm.weight`` holds the elements from
4096 on of that flattened parameter's mean gradient. No rank gathers anything, and a rank that loads
reads only the bytes of its own share.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

from easyllm.errors import UserError
from easyllm.heartbeat import beat
from easyllm.models.tensor_files import header
from easyllm.parallelism.engine import TrainEngine
from easyllm.parallelism.fragments import MASTER, Fragment, state_of, take_up

FOLDER = "optimizer"

SHARE_BYTES = 1e9
"""Size of a file, and so the host memory that a save needs while training waits for it."""

PIECE_BYTES = 256e6
"""Size of a tensor in a file; a larger one, such as an embedding's state, is split into several."""


def shares(engine: TrainEngine, limit: float = SHARE_BYTES) -> Iterator[dict[str, torch.Tensor]]:
    """Copies in host memory of this rank's part of the optimizer's state, as it is written, of
    about ``limit`` bytes each. A share may be freed when the next is requested."""
    share: dict[str, torch.Tensor] = {}
    size = 0
    for key, value in _held(engine):
        share[key] = value.cpu().clone()
        size += value.nbytes
        if size >= limit:
            yield share
            share, size = {}, 0
    if share:
        yield share


def _held(engine: TrainEngine) -> Iterator[tuple[str, torch.Tensor]]:
    """This rank's part of the optimizer's state, not copied, in pieces by name."""
    for fragment in engine.own_fragments():
        for key, value in state_of(fragment, engine.optimizer).items():
            count = max(1, int(PIECE_BYTES // value.element_size()))
            pieces = value.split(count) if value.ndim else [value]
            for number, piece in enumerate(pieces):
                yield f"{key}/{fragment.begin + number * count}/{fragment.name}", piece


def file_name(rank: int, number: int) -> str:
    """The file name of the share ``number``, from 0, of a rank."""
    return f"rank-{rank:05}{f'-{number:05}' if number else ''}.safetensors"


def load(engine: TrainEngine, folder: Path) -> None:
    """Give this rank's optimizer its share of the state under ``folder``, which any number of ranks
    in any layout wrote. Raises UserError where a part is missing."""
    parts = _index(folder)
    for fragment in engine.fragments():
        known = parts.get(fragment.name, {})
        if not known or (fragment.low_precision and MASTER not in known):
            missing = MASTER if known else "state"
            raise UserError(
                f"{folder} has no {missing} of {fragment.name}; give training.resume=weights"
            )
        state = {key: _joined(fragment, key, known[key], folder) for key in known}
        take_up(fragment, state, engine.optimizer)
        beat()


class _Part(NamedTuple):
    file: Path
    name: str
    begin: int
    shape: tuple[int, ...]


def _index(folder: Path) -> dict[str, dict[str, list[_Part]]]:
    """The parts by parameter and key of the state."""
    found: dict[str, dict[str, list[_Part]]] = {}
    for file in sorted(folder.glob("rank-*.safetensors")):
        for name, tensor in header(file)[0].items():
            key, begin, parameter = name.split("/", 2)
            part = _Part(file, name, int(begin), tuple(tensor["shape"]))
            found.setdefault(parameter, {}).setdefault(key, []).append(part)
    return found


def _joined(fragment: Fragment, key: str, parts: list[_Part], folder: Path) -> torch.Tensor:
    if not parts[0].shape:
        with safe_open(parts[0].file, framework="pt") as opened:
            scalar: torch.Tensor = opened.get_tensor(parts[0].name)
        return scalar
    pieces = list(_pieces(fragment, parts))
    joined = torch.cat(pieces) if pieces else torch.empty(0)
    if len(joined) != fragment.length:
        raise UserError(
            f"{folder} has {len(joined)} of {fragment.length} elements of {key} of "
            f"{fragment.name} from {fragment.begin} on; give training.resume=weights"
        )
    return joined


def _pieces(fragment: Fragment, parts: list[_Part]) -> Iterator[torch.Tensor]:
    """The fragment's data from the parts, which do not overlap, in order."""
    end = fragment.begin + fragment.length
    for part in sorted(parts, key=lambda part: part.begin):
        first = max(part.begin, fragment.begin)
        last = min(part.begin + part.shape[0], end)
        if first < last:
            with safe_open(part.file, framework="pt") as opened:
                yield opened.get_slice(part.name)[first - part.begin : last - part.begin]
