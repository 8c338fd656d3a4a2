"""How consecutive layers are divided over pipeline stages. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from math import prod
from typing import TYPE_CHECKING

from easyllm.errors import UserError
from easyllm.spec.roles import LayerShape

if TYPE_CHECKING:
    from easyllm.parallelism.layouts import Pipeline


def stage_bounds(layers: Sequence[LayerShape], layout: Pipeline, seq_len: int) -> list[int]:
    """The indices at which the stages of ``layout`` begin in the list of layers, and its length.

    Raises UserError where a stage would be left without a decoder layer.
    """
    decoders = [place for place, layer in enumerate(layers) if layer.decoder]
    stages, given = layout.pipeline_stages, layout.stage_boundaries
    if given:
        if given[-1] >= len(decoders):
            raise UserError(
                f"parallelism.stage_boundaries={list(given)}: the model has {len(decoders)} "
                f"decoder layers; give increasing numbers from 1 to {len(decoders) - 1}"
            )
        return [0, *(decoders[layer] for layer in given), len(layers)]
    weights = [_weight(layer, layers, layout.partition, seq_len) for layer in layers]
    try:
        return bounds(weights, [layer.decoder for layer in layers], stages)
    except ValueError as error:
        raise UserError(
            f"parallelism.pipeline_stages={stages}: {error}; give at most {len(decoders)}"
        ) from None


def _weight(layer: LayerShape, layers: Sequence[LayerShape], partition: str, seq_len: int) -> float:
    """The weight of a layer for ``parallelism.partition``."""
    if partition == "uniform":
        return float(layer.decoder)
    source = next(other for other in layers if other.name == (layer.tied_to or layer.name))
    parameters = sum(map(prod, source.parameters.values()))
    if partition == "parameters":
        return float(parameters)
    if layer is layers[0]:  # only looked up
        return 0.0
    # multiplications for a token: one for each parameter, and half of attention's two products
    queries = layer.parameters.get(f"{layer.name}.self_attn.q_proj.weight", (0,))[0]
    return float(parameters + seq_len * queries)


def idle(layers: Sequence[LayerShape], begins: Sequence[int], trained: Iterable[str]) -> list[int]:
    """The stages, from 0, that hold none of the parameters ``trained``."""
    names = tuple(trained)

    def busy(layer: LayerShape) -> bool:
        return any(name.startswith(f"{layer.tied_to or layer.name}.") for name in names)

    return [
        stage
        for stage, (begin, end) in enumerate(pairwise(begins))
        if not any(map(busy, layers[begin:end]))
    ]


def left_idle(layers: Sequence[LayerShape], begins: Sequence[int], stage: int) -> str:
    """The message about a stage in which nothing is trained."""
    held = layers[begins[stage] : begins[stage + 1]]
    return (
        f"in pipeline stage {stage + 1} of {len(begins) - 1}, {held[0].name} to {held[-1].name}, "
        "nothing would be trained"
    )


IDLE = (
    "train something in each stage, give parallelism.stage_boundaries so that each holds a trained "
    "layer, fewer parallelism.pipeline_stages, or parallelism=zero"
)
"""The remedy for a stage in which nothing is trained."""


def bounds(weights: Sequence[float], decoders: Sequence[bool], stages: int) -> list[int]:
    """Where the stages begin: ``stages + 1`` ascending indices from 0 to ``len(weights)``.

    Every stage holds a decoder layer, the heaviest stage is as light as possible and, among equal
    splits, the others are as even as possible. Raises ValueError with fewer decoder layers than
    stages.
    """
    if sum(decoders) < stages:
        raise ValueError(f"{sum(decoders)} decoder layers cannot make {stages} stages")
    total = [0.0, *accumulate(weights)]
    layers = [0, *accumulate(map(int, decoders))]
    count = len(weights)
    # best[end]: heaviest stage, sum of squares and bounds of splitting the first `end` layers
    best: list[tuple[float, float, list[int]] | None] = [(0.0, 0.0, [0]), *[None] * count]
    for _ in range(stages):
        following: list[tuple[float, float, list[int]] | None] = [None] * (count + 1)
        for end in range(1, count + 1):
            for begin in range(end):
                known = best[begin]
                if known is None or layers[end] == layers[begin]:
                    continue
                load = total[end] - total[begin]
                split = (max(known[0], load), known[1] + load * load, [*known[2], end])
                current = following[end]
                following[end] = split if current is None else min(current, split)
        best = following
    found = best[count]
    assert found is not None
    return found[2]
