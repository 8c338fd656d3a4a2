"""Comparisons of two programs that should see or compute the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

ROUNDING = {"float32": 1e-4, "float16": 0.05, "bfloat16": 0.1}
"""The largest difference that rounding explains, by the coarser dtype of the two: of the
log-probabilities of tokens in nats, the root mean square over all tokens."""
NEAR = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.25}
"""The distance in nats of the likeliest token to the second within which rounding may choose
either."""
GRADIENT = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.1}
"""The largest difference of the norms of gradients that rounding explains, as a share of them."""
SHOWN = 6
"""Tokens shown around the first that differs."""


@dataclass
class Comparison:
    """What one program gives to the next, compared."""

    name: str
    between: str
    """Both sides."""
    status: Literal["same", "differs", "not compared"]
    found: str
    """In words: what was compared and how far it is apart, or why it was not compared."""
    means: str = ""
    """What a difference usually means."""
    numbers: dict[str, Any] = field(default_factory=dict)


def skipped(name: str, between: str, why: str) -> Comparison:
    return Comparison(name, between, "not compared", why)


def tokens(
    name: str,
    between: str,
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    means: str,
    decode: Any = None,
) -> Comparison:
    """Compares lists of token ids by the name of their text. A text in place of ids is the reason
    why there are none. ``decode`` shows ids as text."""
    count = 0
    for what, expected in ours.items():
        got = theirs[what]
        if isinstance(got, str):
            return Comparison(name, between, "differs", f"{what}: {got}", means, {"text": what})
        if list(expected) != list(got):
            at = first_difference(expected, got)
            return Comparison(
                name, between, "differs",
                f"{what}: token {at + 1} of {len(expected)} is {_shown(expected, at, decode)}, and "
                f"{_shown(got, at, decode)} of {len(got)}",
                means, {"text": what, "token": at + 1, "ours": list(expected), "theirs": list(got)},
            )  # fmt: skip
        count += len(got)
    return Comparison(name, between, "same", f"{count:,} tokens of {len(ours)} texts", means)


def logprobs(
    name: str,
    between: str,
    ours: Sequence[Sequence[float]],
    theirs: Sequence[Sequence[float]],
    names: Sequence[str],
    dtype: str,
    means: str,
) -> Comparison:
    """Compares the log-probabilities of the same tokens, document by document."""
    worst, where = 0.0, ""
    squares, sums, count = 0.0, [0.0, 0.0], 0
    for what, mine, other in zip(names, ours, theirs, strict=True):
        for at, (a, b) in enumerate(zip(mine, other, strict=True), start=2):
            difference = abs(a - b) if math.isfinite(a) and math.isfinite(b) else math.inf
            squares += difference**2
            sums[0] -= a
            sums[1] -= b
            count += 1
            if not difference <= worst:
                worst, where = difference, f"{what}, token {at}"
    rms, limit = math.sqrt(squares / count), ROUNDING[dtype]
    same = rms <= limit
    losses = [total / count for total in sums]
    text = f"loss {losses[0]:.5f} and {losses[1]:.5f}; tokens {rms:.2g} nats apart"
    if not same:
        text += f", where {dtype} explains {limit:g}; most at {where}: {worst:.3g}"
    return Comparison(
        name, between, "same" if same else "differs", text, means,
        {"loss": losses, "rms": rms, "largest": worst, "limit": limit, "tokens": count},
    )  # fmt: skip


def answers(
    name: str,
    between: str,
    ours: Sequence[Mapping[str, Sequence[Any]]],
    theirs: Sequence[Sequence[Any]],
    names: Sequence[str],
    dtype: str,
    means: str,
    decode: Any = None,
) -> Comparison:
    """Compares greedy answers with those of transformers, which have ``tokens`` (or their texts)
    and ``margins``. After the first difference nothing can be compared."""
    ties, count = 0, 0
    for what, expected, got in zip(names, ours, theirs, strict=True):
        mine = list(expected["tokens"])
        if mine == list(got):
            count += len(mine)
            continue
        at = first_difference(mine, got)
        count += at
        margin = expected["margins"][at] if at < len(mine) else math.inf
        if margin <= NEAR[dtype]:
            ties += 1
            continue
        return Comparison(
            name, between, "differs",
            f"after {what}: token {at + 1} is {_shown(mine, at, decode)}, and "
            f"{_shown(got, at, decode)}; the likeliest is {margin:.3g} nats before the second",
            means, {"text": what, "token": at + 1, "margin": margin},
        )  # fmt: skip
    text = f"{count:,} tokens of {len(ours)} answers"
    if ties:
        text += f"; {ties} part where two tokens are within {NEAR[dtype]:g} nats"
    return Comparison(name, between, "same", text, means, {"tokens": count, "ties": ties})


def first_difference(one: Sequence[Any], other: Sequence[Any]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _shown(values: Sequence[Any], at: int, decode: Any = None) -> str:
    part = list(values[at : at + SHOWN])
    if not part:
        return "the end"
    if decode is not None and all(isinstance(value, int) for value in part):
        return f"{part} ({decode(part)!r})"
    return str(part)
