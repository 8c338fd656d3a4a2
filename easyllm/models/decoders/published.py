"""The published names and layouts of transformers' models, as transformers converts them.

It was written for transformers 5.19, which renames and joins the tensors of files when it loads
them, and reverts that when it saves. No conversion crosses layers, so each layer is converted by
itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from easyllm.models.weight_mapping import ReadRows, Shape, WeightMapping


class PublishedMapping(WeightMapping):
    """``model`` is any instance of the class, for example on the meta device."""

    def __init__(self, model: Any):
        found = get_model_conversion_mapping(model, add_legacy=False)
        self.transforms = [t for t in found if not isinstance(t, PrefixChange)]
        self.model, self.expected = model, model.state_dict()
        model._weight_conversions = self.transforms or None  # where reverting looks first

    def sources(self, parameter: str, shape: Shape) -> dict[str, Shape]:
        made = self.stored({parameter: torch.empty(shape, device="meta")})
        return {name: tuple(tensor.shape) for name, tensor in made.items()}

    def loaded(self, parameter: str, shape: Shape, read: ReadRows) -> torch.Tensor:
        found = {name: read(name, slice(None)) for name in self.sources(parameter, shape)}
        converted = self._converted(found)
        if parameter not in converted and len(found) == 1:
            # a name that is read back as another one: DeepSeek-V4's last norm
            converted[parameter] = next(iter(found.values()))
        return converted[parameter]

    def stored(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        if not self.transforms:
            return dict(parameters)
        made: dict[str, Any] = revert_weight_conversion(self.model, dict(parameters))
        return made

    def _converted(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Parameters from tensors with published names."""
        renamings = [t for t in self.transforms if isinstance(t, WeightRenaming)]
        converters = [t for t in self.transforms if isinstance(t, WeightConverter)]
        by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
        chosen: dict[str, Any] = {}
        found: dict[str, torch.Tensor] = {}
        for name in sorted(tensors, key=dot_natural_key):
            to, pattern = rename_source_key(
                name, renamings, converters, self.model.base_model_prefix, self.expected
            )
            if pattern is None:
                found[to] = tensors[name]
                continue
            converter = chosen.setdefault(to, deepcopy(by_pattern[pattern]))
            converter.add_tensor(to, name, pattern, tensors[name])
        for to, converter in chosen.items():
            made = converter.convert(to, model=self.model, config=self.model.config)
            found |= {n: t[0] if isinstance(t, list) else t for n, t in made.items()}
        return found
