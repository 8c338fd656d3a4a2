"""What a small model of the same kind, on the CPU, shows of a larger one."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig

from easyllm.errors import UserError
from easyllm.models.attention.documents import Documents
from easyllm.models.decoders.fresh import FreshWeights
from easyllm.models.decoders.shrink import shrunk
from easyllm.models.decoders.skeleton import Skeleton
from easyllm.models.decoders.stage import Stage
from easyllm.models.layers import unprojected
from easyllm.models.weights import filled
from easyllm.spec.roles import ModelShape

TINY = ModelShape(
    layers=4, hidden_size=64, heads=4, kv_heads=2, head_dim=16, intermediate_size=64,
    vocab_size=128, max_positions=256, tied=False,
)  # fmt: skip
FIRST, SECOND = 37, 23
"""The tokens of two documents, more than a small window has."""
WRONG = (TypeError, ValueError, RuntimeError)
"""What transformers raises for a configuration that makes no model."""
ROUNDING = 1e-4
"""The largest difference of logits, as a share of the largest one, that is not a leak."""


@torch.no_grad()
def changes_logits(config: Mapping[str, Any], attention: str) -> bool:
    """Whether the model computes something of what its head gives, such as a scale or a cap."""
    small = shrunk(config, TINY)
    try:
        stage = _stage(small, attention, projects=False)
        stage(torch.arange(3, 3 + SECOND).unsqueeze(0), _documents(SECOND))
    except (*WRONG, UserError):
        return True
    return False


@torch.no_grad()
def leaks(config: Mapping[str, Any], attention: str, plain: str) -> bool:
    """Whether the model with ``config``, computed with ``attention``, gives other logits for a
    document that follows another one in its row than with ``plain`` attention by itself. Both are
    names of transformers' attention interface."""
    if "index_topk" in config:
        return True  # an indexer chooses among all tokens of a row, and breaks ties by their place
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several only wait for each other over so little
    try:
        return _leaks(config, attention, plain)
    finally:
        torch.set_num_threads(threads)


def _leaks(config: Mapping[str, Any], attention: str, plain: str) -> bool:
    small = shrunk(config, TINY)
    ids = torch.arange(3, 3 + FIRST + SECOND).remainder(120).unsqueeze(0)
    try:
        together = _stage(small, attention)(ids, _documents(FIRST, SECOND))[:, FIRST:]
        alone = _stage(small, plain)(ids[:, FIRST:], _documents(SECOND))
    except WRONG:  # it does not pass documents on as they are, or lacks a value
        return True
    return bool((together - alone).abs().max() > ROUNDING * alone.abs().max())


def _documents(*lengths: int) -> Documents:
    return Documents.of(torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0))


def _stage(config: Mapping[str, Any], attention: str, projects: bool = True) -> Any:
    """The whole model, with drawn weights, as one stage. One that does not project gives the inputs
    of the head."""
    skeleton = Skeleton.of(AutoConfig.for_model(**config), attention)
    weights = FreshWeights(skeleton, seed=0, spread=0.1)
    own: dict[str, Any] = filled(skeleton.specs(), weights, torch.float32, torch.device("cpu"))
    for layer in own.values():
        layer.eval()
    if not projects:
        own[skeleton.head] = functools.partial(unprojected, own[skeleton.head])
    return Stage(skeleton, own)
