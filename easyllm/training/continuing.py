"""Which keys of the spec may change between two starts of a run. Light."""

from __future__ import annotations

DECIDES = (
    "seed",
    "model.path",
    "model.init",
    "model.dtype",
    "model.family",
    "model.config",
    "model.overrides",
    "parallelism.global_batch_size",
    "training.adapter",
    "training.freeze",
    "training.optimizer",
    "training.schedule",
    "training.gradient_clipping",
)
"""With another value of these the losses to come are others."""

GOES_ON = ("parallelism", "model.attention", "training.steps", "training.epochs")
"""With another value of these, those above left out, training goes on from the same state on
the same samples: losses agree but for rounding, and the schedule follows the new end."""


def decides(key: str) -> bool:
    return _under(key, DECIDES)


def goes_on(key: str) -> bool:
    return _under(key, GOES_ON) and not decides(key)


def _under(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)
