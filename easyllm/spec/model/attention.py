"""What each attention implementation needs and does not support."""

from __future__ import annotations

from collections.abc import Iterator

from easyllm.spec.problems import Problem
from easyllm.spec.run import RunSpec

ON_CUDA = ("varlen", "flex_attention", "flash_attention_2")
"""Attention that trains on CUDA devices only; torch's flex attention has no backward pass on a
CPU."""
IN_16_BITS = ("varlen", "flash_attention_2")
"""Attention whose kernels take 16-bit numbers only."""
INSTEAD = {"flex_attention": "sdpa", "varlen": "sdpa"}
"""What computes the same in transformers alone, for attention of ours."""
WITHOUT_DROPOUT = ("varlen", "flex_attention")
"""Attention for which torch has no dropout."""


def problems(run: RunSpec) -> Iterator[Problem]:
    """What ``model.attention`` does not support in this run."""
    model = run.model
    config = {**model.config, **model.overrides}
    if model.attention in ON_CUDA and run.hardware.device == "cpu":
        yield Problem(
            "model.attention", model.attention, "needs a CUDA device",
            "give model.attention=sdpa", also=("hardware.device",),
        )  # fmt: skip
    if model.attention in IN_16_BITS and model.dtype == "float32":
        yield Problem(
            "model.attention", model.attention, f"does not support {model.dtype}",
            "give model.dtype=bfloat16, or model.attention=sdpa", also=("model.dtype",),
        )  # fmt: skip
    dropout = config.get("attention_dropout")
    if model.attention in WITHOUT_DROPOUT and dropout:
        yield Problem(
            "model.attention", model.attention,
            f"has no dropout, but attention_dropout={dropout}",
            "give model.attention=sdpa, or model.overrides.attention_dropout=0",
            also=("model.overrides", "model.config"),
        )  # fmt: skip
    if model.attention == "varlen" and model.family and model.family.alibi(config):
        yield Problem(
            "model.attention", model.attention, "does not support ALiBi, this model's positions",
            "give model.attention=flex_attention, or sdpa", also=("model.family",),
        )  # fmt: skip
