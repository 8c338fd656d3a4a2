"""The names in a model's files of the parameters of its layers."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

ReadRows = Callable[[str, slice], Any]
"""Reads rows of a tensor of the files, by its name."""
Shape = tuple[int, ...]


class WeightMapping(abc.ABC):
    """A map between the parameters of layers and the tensors of files. A tensor of the files holds
    parameters of one layer only."""

    @abc.abstractmethod
    def sources(self, parameter: str, shape: Shape) -> dict[str, Shape]:
        """The whole shapes, by name, of the tensors in the files that hold a parameter."""

    @abc.abstractmethod
    def loaded(self, parameter: str, shape: Shape, read: ReadRows) -> Any:
        """The parameter as a tensor, made from what ``read`` gives."""

    @abc.abstractmethod
    def stored(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors of the files for all the parameters of one or more layers."""


@dataclass(frozen=True)
class RowMapping(WeightMapping):
    """Other names for parameters, and tensors that hold the rows of several. The default changes
    nothing."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    """Parts of parameters' names, and the names for them in the files."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Parts of tensors' names in the files, and for each the parts of the names of the parameters
    whose rows it holds one after the other, the same number of each."""

    def sources(self, parameter: str, shape: Shape) -> dict[str, Shape]:
        tensor, _, parts = self._place(parameter)
        return {tensor: (parts * shape[0], *shape[1:])}

    def loaded(self, parameter: str, shape: Shape, read: ReadRows) -> Any:
        tensor, part, parts = self._place(parameter)
        rows = slice(part * shape[0], (part + 1) * shape[0]) if parts > 1 else slice(None)
        return read(tensor, rows)

    def stored(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        import torch

        return {
            tensor: parameters[parts[0]] if len(parts) == 1 else torch.cat(
                [parameters[part] for part in parts]
            )
            for tensor, parts in self.tensors(parameters).items()
        }  # fmt: skip

    def _place(self, parameter: str) -> tuple[str, int, int]:
        """The tensor that holds ``parameter``, which of its parts it is, and the number of these
        parts, which are equal numbers of rows."""
        part, parts = 0, 1
        for theirs, ours in self.fused.items():
            for index, piece in enumerate(ours):
                if piece in parameter:
                    parameter, part, parts = parameter.replace(piece, theirs), index, len(ours)
        for piece, theirs in self.renamed.items():
            parameter = parameter.replace(piece, theirs)
        return parameter, part, parts

    def parameters(self, tensor: str) -> list[str]:
        """The parameters that a tensor of the files holds, in the order of its rows."""
        for ours, piece in self.renamed.items():
            tensor = tensor.replace(piece, ours)
        for piece, parts in self.fused.items():
            if piece in tensor:
                return [tensor.replace(piece, part) for part in parts]
        return [tensor]

    def tensors(self, parameters: Iterable[str]) -> dict[str, list[str]]:
        """The tensors of the files that hold ``parameters``, each with its parameters in the order
        of its rows."""
        places = {parameter: self._place(parameter) for parameter in parameters}
        found: dict[str, list[str]] = {tensor: [] for tensor, _, _ in places.values()}
        for parameter in sorted(places, key=lambda parameter: places[parameter][1]):
            found[places[parameter][0]].append(parameter)
        return found
