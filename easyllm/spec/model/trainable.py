"""Which parameters of a model are trained, from the names and shapes of its layers only."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod

from easyllm.spec.problems import Problem
from easyllm.spec.roles import Adapter, LayerShape
from easyllm.spec.run import RunSpec

REGEX = "re:"
"""The prefix of a pattern that is a regular expression and not a glob."""


def matches(pattern: str, name: str) -> bool:
    """Whether a glob, or a regular expression after ``re:``, matches the whole of a name. An
    invalid regular expression matches no name."""
    if pattern.startswith(REGEX):
        with contextlib.suppress(re.error):
            return re.fullmatch(pattern.removeprefix(REGEX), name) is not None
        return False
    return fnmatchcase(name, pattern)


def shapes(layers: Iterable[LayerShape]) -> dict[str, tuple[int, ...]]:
    """The shapes of all of a model's parameters by name."""
    return {name: shape for layer in layers for name, shape in layer.parameters.items()}


def linears(layers: Iterable[LayerShape]) -> dict[str, tuple[int, ...]]:
    """The shapes of the matrices of the decoder layers, by the names of their modules."""
    return {
        name.removesuffix(".weight"): shape
        for layer in layers
        if layer.decoder
        for name, shape in layer.parameters.items()
        if name.endswith(".weight") and len(shape) == 2
        if layer.linears is None or name.removesuffix(".weight") in layer.linears
    }


def tied(layers: Iterable[LayerShape]) -> dict[str, str]:
    """The names of weights that are shared with another layer, each with that layer's name."""
    return {f"{layer.name}.weight": f"{layer.tied_to}.weight" for layer in layers if layer.tied_to}


def _beside(layers: Sequence[LayerShape]) -> dict[str, str]:
    """The modules with a matrix outside the decoder layers, which are the embedding and the head,
    each with a remark for an error message."""
    pairs = tied(layers)
    own = shapes(layer for layer in layers if not layer.decoder)
    names = [name for name, shape in own.items() if len(shape) == 2]
    return {
        name.removesuffix(".weight"): f", whose weight is that of {other}" if other else ""
        for name, other in {**dict.fromkeys(names, ""), **pairs}.items()
    }


def trained(run: RunSpec, layers: Sequence[LayerShape]) -> dict[str, tuple[int, ...]]:
    """The shapes of the trained parameters by name: those of an adapter, or those of the model
    that are not frozen."""
    if adapter := run.training.adapter:
        matrices = linears(layers)
        return {
            name: shape
            for target in adapter.chosen(matrices)
            for name, shape in adapter.parameters(target, matrices[target]).items()
        }
    patterns = run.training.freeze.values()
    return {
        name: shape
        for name, shape in shapes(layers).items()
        if not any(matches(pattern, name) for pattern in patterns)
    }


def share(run: RunSpec, layers: Sequence[LayerShape]) -> float:
    """The number of trained parameters as a share of the model's."""
    return number(trained(run, layers)) / max(1, number(shapes(layers)))


def problems(run: RunSpec, layers: Sequence[LayerShape]) -> Iterator[Problem]:
    """Patterns that match nothing in the model, and a model without any trained parameter."""
    training, names = run.training, list(shapes(layers))
    if training.adapter and training.freeze:
        yield Problem(
            "training.freeze", training.freeze, "training.adapter freezes all of the model",
            "take training.freeze out", also=("training.adapter",),
        )  # fmt: skip
        return
    found = list(_unmatched(run, layers))
    if not found and not trained(run, layers):
        found = [
            Problem(
                "training.freeze", training.freeze, f"freezes all {len(names)} parameters",
                "freeze less",
            )
        ]  # fmt: skip
    yield from found


def _unmatched(run: RunSpec, layers: Sequence[LayerShape]) -> Iterator[Problem]:
    names, pairs = list(shapes(layers)), tied(layers)
    some = ", ".join(names[:: max(1, len(names) // 4)][:4])
    for key, pattern in run.training.freeze.items():
        halved = [n for n, o in pairs.items() if matches(pattern, n) and not matches(pattern, o)]
        if halved:
            yield Problem(
                f"training.freeze.{key}", pattern,
                f"{halved[0]} is the same tensor as {pairs[halved[0]]}, which it does not match",
                f"give {pairs[halved[0]]}, which freezes both, or a pattern without {halved[0]}",
            )  # fmt: skip
        elif not any(matches(pattern, name) for name in names):
            yield _nothing(
                f"training.freeze.{key}", pattern, "parameter of the model",
                f"parameters have names such as {some}; * matches any text",
            )  # fmt: skip
    if run.training.adapter:
        yield from _misplaced(run.training.adapter, layers)


def _misplaced(adapter: Adapter, layers: Sequence[LayerShape]) -> Iterator[Problem]:
    """Patterns of an adapter that match no linear layer of a decoder layer, or also match others.

    The embedding and the head, which may be one tensor, get no adapter. For such a pair peft 0.21
    either trains two adapters and merges only one, or trains one and merges it twice.
    """
    key, matrices, beside = "training.adapter.targets", linears(layers), _beside(layers)
    last = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in matrices))
    for pattern in adapter.patterns:
        if pattern in adapter.everywhere:
            continue
        if wrong := adapter.chosen(beside, [pattern]):
            yield Problem(
                key, pattern,
                f"chooses {wrong[0]}{beside[wrong[0]]}; only the linear layers of the decoder "
                "layers get an adapter",
                f"give {', '.join(adapter.everywhere) or 'others'}, or the ends of their names: "
                f"{last}; to train {wrong[0]} itself, freeze the rest instead: "
                "training.adapter=null training.freeze.layers='model.layers.*'",
            )  # fmt: skip
        elif not adapter.chosen(matrices, [pattern]):
            remedy = f"the names of those in the decoder layers end in {last}"
            yield _nothing(key, pattern, "linear layer", remedy)


def _nothing(key: str, pattern: str, kind: str, remedy: str) -> Problem:
    """A pattern that matches nothing."""
    if pattern.startswith(REGEX):
        try:
            re.compile(pattern.removeprefix(REGEX))
        except re.error as error:
            return Problem(key, pattern, f"is no regular expression: {error}", "fix it")
    return Problem(key, pattern, f"matches no {kind}", remedy)


def number(found: Mapping[str, tuple[int, ...]]) -> int:
    """The number of parameters with these shapes."""
    return sum(map(prod, found.values()))
