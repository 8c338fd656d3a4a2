"""The layers of a decoder by their names and shapes, known without weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from easyllm.spec.roles import LayerShape, ModelShape


@dataclass(frozen=True)
class Outline:
    problem: str = ""
    """Why transformers cannot make this model, or why it cannot be trained; the rest is then
    empty."""
    known: tuple[str, ...] = ()
    """The types of decoders that can be trained, where the type is not one of them."""
    keys: frozenset[str] = frozenset()
    """The keys of its configuration class."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The complete configuration."""
    layers: tuple[LayerShape, ...] = ()
    shape: ModelShape | None = None
    active: float = 1.0
    """The share of the parameters that a token uses; less than 1 with experts."""
    uncut: str = ""
    """Why the layers cannot be divided over pipeline stages."""
    eager_only: bool = False
    """Whether transformers has no other attention for this type."""
    changes_logits: bool = False
    """Whether it scales or caps the logits after its head."""
    leaks: bool = False
    """Whether, in a row of several documents and with transformers' own attention, one changes the
    results of the next."""
    own_attention: bool = False
    """Whether attention by ``easyllm.models.attention`` computes the same and stays within
    documents."""


def written(found: Outline) -> dict[str, Any]:
    """The outline as JSON's kinds of values."""
    plain = dataclasses.asdict(found)
    return {**plain, "keys": sorted(found.keys)}


def read(plain: Mapping[str, Any]) -> Outline:
    """The outline from which ``written`` made ``plain``."""
    layers = [
        LayerShape(**{
            **layer,
            "parameters": {name: tuple(shape) for name, shape in layer["parameters"].items()},
        })
        for layer in plain["layers"]
    ]  # fmt: skip
    shape = ModelShape(**plain["shape"]) if plain["shape"] else None
    return Outline(**{
        **plain, "keys": frozenset(plain["keys"]), "known": tuple(plain["known"]),
        "layers": tuple(layers), "shape": shape,
    })  # fmt: skip
