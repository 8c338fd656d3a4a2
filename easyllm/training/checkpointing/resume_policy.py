"""Which keys of the spec may change between two starts of a run. Light."""

from __future__ import annotations

DECIDES = (
    "seed",
    "model.path",
    "model.revision",
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

GOES_ON = (
    "parallelism",
    "model.attention",
    "model.compile",
    "training.deterministic",
    "training.loss",
    "training.optimizer.fused",
    "training.steps",
    "training.epochs",
)
"""With another value of these training goes on from the same state on the same samples: losses
agree but for rounding, and the schedule follows the new end. Of both lists the longest key counts
that another is under."""


def affects_loss(key: str) -> bool:
    return _length(key, DECIDES) > _length(key, GOES_ON)


def may_change(key: str) -> bool:
    return _length(key, GOES_ON) > _length(key, DECIDES)


def _length(key: str, prefixes: tuple[str, ...]) -> int:
    """Of the longest prefix that the key is under; 0 where it is under none."""
    return max((len(p) for p in prefixes if key == p or key.startswith(f"{p}.")), default=0)
