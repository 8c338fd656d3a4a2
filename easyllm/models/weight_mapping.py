"""The names in a model's files of the parameters of its layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TensorSlice:
    """The place of a parameter: part ``part`` of a tensor whose rows are in ``parts`` equal
    parts."""

    tensor: str
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class WeightMapping:
    """A map between parameters and the tensors of files. The default changes nothing."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    """Parts of parameters' names, and the names for them in the files."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Parts of tensors' names in the files, and for each the parts of the names of the parameters
    whose rows it holds one after the other, the same number of each."""

    def slice_of(self, parameter: str) -> TensorSlice:
        """The place of ``parameter`` in the files."""
        part, parts = 0, 1
        for theirs, ours in self.fused.items():
            for index, piece in enumerate(ours):
                if piece in parameter:
                    parameter, part, parts = parameter.replace(piece, theirs), index, len(ours)
        for piece, theirs in self.renamed.items():
            parameter = parameter.replace(piece, theirs)
        return TensorSlice(parameter, part, parts)

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
        places = {parameter: self.slice_of(parameter) for parameter in parameters}
        found: dict[str, list[str]] = {place.tensor: [] for place in places.values()}
        for parameter in sorted(places, key=lambda parameter: places[parameter].part):
            found[places[parameter].tensor].append(parameter)
        return found
