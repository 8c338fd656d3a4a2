"""Which keys of the spec may change between two starts of a run. Light."""

from __future__ import annotations

AFFECTS_LOSS = (
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
    "training.router_aux_loss",
)
"""Keys whose values decide the following losses."""

MAY_CHANGE = (
    "parallelism",
    "model.attention",
    "model.compile",
    "training.deterministic",
    "training.loss",
    "training.check_packing",
    "training.check_engine",
    "training.optimizer.fused",
    "training.steps",
    "training.epochs",
)
"""With other values of these keys training continues from the same state on the same samples:
losses agree except for rounding, and the schedule follows the new end. Where both lists match a
key, the longer entry decides."""


def affects_loss(key: str) -> bool:
    return _length(key, AFFECTS_LOSS) > _length(key, MAY_CHANGE)


def may_change(key: str) -> bool:
    return _length(key, MAY_CHANGE) > _length(key, AFFECTS_LOSS)


def _length(key: str, prefixes: tuple[str, ...]) -> int:
    """The length of the longest prefix of the key; 0 where none is a prefix."""
    return max((len(p) for p in prefixes if key == p or key.startswith(f"{p}.")), default=0)
