"""The family of every decoder that transformers knows. Standard library only."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from easyllm.spec.roles import Family, LayerShape, ModelShape

if TYPE_CHECKING:
    from easyllm.models.decoders.outline import Outline


@dataclass(frozen=True, kw_only=True)
class Decoder(Family):
    """A causal language model of transformers whose configuration class has a
    ``base_model_pp_plan``. What it computes is transformers' code."""

    type: str
    """``model_type`` in ``config.json``."""

    @property
    def model_type(self) -> str:
        return self.type

    @property
    def config_keys(self) -> frozenset[str]:
        return self.outline({}).keys

    @property
    def one_layout(self) -> bool:
        return True

    def outline(self, config: Mapping[str, Any]) -> Outline:
        from easyllm.models.decoders.outlines import outline

        return outline({**config, "model_type": self.type})

    def unusable(self, config: Mapping[str, Any]) -> tuple[str, Sequence[str]]:
        found = self.outline(config)
        return found.problem, found.known

    def uncut(self, config: Mapping[str, Any]) -> str:
        return self.outline(config).uncut

    def attentions(self, config: Mapping[str, Any]) -> Sequence[str]:
        found = self.outline(config)
        if found.eager_only:
            return ("eager",)
        return ("sdpa", "eager", *(("flex_attention", "varlen") if found.own_attention else ()))

    def changes_logits(self, config: Mapping[str, Any]) -> bool:
        return self.outline(config).changes_logits

    def active(self, config: Mapping[str, Any]) -> float:
        return self.outline(config).active

    def shape(self, config: Mapping[str, Any]) -> ModelShape:
        found = self.outline(config)
        if found.shape is None:
            raise ValueError(found.problem)
        return found.shape

    def shaped(self, config: Mapping[str, Any], shape: ModelShape) -> dict[str, Any]:
        from easyllm.models.decoders.shrink import shrunk

        return {**shrunk(self.outline(config).config, shape), "model_type": self.type}

    def param_specs(self, config: Mapping[str, Any]) -> list[LayerShape]:
        return list(self.outline(config).layers)

    def layers(self, config: Any, attention: str) -> list[Any]:
        from easyllm.models.attention.documents import implementation

        name = implementation(attention)
        if name != attention and not self.outline(json.loads(_text(config))).own_attention:
            name = attention
        return list(_skeleton(_text(config), name).specs())

    def assembly(self, config: Any, attention: str, router_aux_loss: float | None) -> Any:
        from easyllm.models.attention.documents import OWN, implementation
        from easyllm.models.decoders.routers import balance_of
        from easyllm.models.decoders.skeleton import Skeleton
        from easyllm.models.decoders.stage import stages
        from easyllm.models.layers import Assembly

        found = self.outline(json.loads(_text(config)))
        if found.own_attention:
            attention = implementation(attention)
        by_document = found.leaks and attention not in OWN
        balance = balance_of(_skeleton(_text(config), "eager").model, router_aux_loss)
        skeleton = functools.partial(Skeleton.of, config, attention)
        return Assembly(functools.partial(stages, skeleton, by_document, balance), balance)

    def names(self, config: Any) -> Any:
        from easyllm.models.decoders.published import PublishedMapping

        return PublishedMapping(_skeleton(_text(config), "eager").model)

    def fresh(self, config: Any, seed: int) -> Any:
        from easyllm.models.decoders.fresh import FreshWeights

        return FreshWeights(_skeleton(_text(config), "eager"), seed)


def _text(config: Any) -> str:
    """A configuration of transformers as JSON."""
    return json.dumps(config.to_dict(), sort_keys=True, default=str)


@functools.lru_cache(maxsize=4)
def _skeleton(config: str, attention: str) -> Any:
    from transformers import AutoConfig

    from easyllm.models.decoders.skeleton import Skeleton

    values = json.loads(config)
    return Skeleton.of(AutoConfig.for_model(**values), attention)
