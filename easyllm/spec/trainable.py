"""What of a model training changes, told from the names and shapes of its layers alone."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod

from easyllm.spec.problems import Problem
from easyllm.spec.roles import LayerShape
from easyllm.spec.run import RunSpec

REGEX = "re:"
"""What a pattern begins with that is a regular expression, for a whole name, and no glob."""


def matches(pattern: str, name: str) -> bool:
    """Whether a glob, or a regular expression after ``re:``, fits the whole of a name; what is
    no regular expression fits none."""
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
    found = shapes(layer for layer in layers if layer.decoder)
    return {
        name.removesuffix(".weight"): shape
        for name, shape in found.items()
        if name.endswith(".weight") and len(shape) == 2
    }


def trained(run: RunSpec, layers: Sequence[LayerShape]) -> dict[str, tuple[int, ...]]:
    """The shapes of what training changes, by name: an adapter's parameters, or the model's
    without the frozen ones."""
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
    """What is trained, as a share of the model's parameters."""
    return _numbers(trained(run, layers)) / max(1, _numbers(shapes(layers)))


def problems(run: RunSpec, layers: Sequence[LayerShape]) -> Iterator[Problem]:
    """Patterns that match nothing of the model, and a model of which nothing is trained."""
    training, names = run.training, list(shapes(layers))
    if training.adapter and training.freeze:
        yield Problem(
            "training.freeze", training.freeze, "training.adapter freezes all of the model",
            "take training.freeze out", also=("training.adapter",),
        )  # fmt: skip
        return
    told = list(_unmatched(run, layers))
    if not told and not trained(run, layers):
        told = [
            Problem(
                "training.freeze", training.freeze, f"freezes all {len(names)} parameters",
                "freeze less",
            )
        ]  # fmt: skip
    yield from told


def _unmatched(run: RunSpec, layers: Sequence[LayerShape]) -> Iterator[Problem]:
    names, matrices = list(shapes(layers)), linears(layers)
    some = ", ".join(names[:: max(1, len(names) // 4)][:4])
    for key, pattern in run.training.freeze.items():
        if not any(matches(pattern, name) for name in names):
            yield _nothing(
                f"training.freeze.{key}", pattern, "parameter of the model",
                f"their names are such as {some}; * stands for any text",
            )  # fmt: skip
    adapter = run.training.adapter
    for pattern in adapter.patterns if adapter else ():
        if adapter and not adapter.chosen(matrices, [pattern]):
            last = dict.fromkeys(name.rpartition(".")[2] for name in matrices)
            yield _nothing(
                "training.adapter.targets", pattern, "linear layer",
                f"those of the decoder layers end in {', '.join(last)}",
            )  # fmt: skip


def _nothing(key: str, pattern: str, kind: str, remedy: str) -> Problem:
    """A pattern that matches nothing."""
    if pattern.startswith(REGEX):
        try:
            re.compile(pattern.removeprefix(REGEX))
        except re.error as error:
            return Problem(key, pattern, f"is no regular expression: {error}", "mend it")
    return Problem(key, pattern, f"matches no {kind}", remedy)


def _numbers(found: Mapping[str, tuple[int, ...]]) -> int:
    return sum(map(prod, found.values()))
