"""The role of a model family."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from easyllm.spec.roles.base import Component


@dataclass(frozen=True, kw_only=True)
class Family(Component):
    """A model family: its configuration's keys, its layers and the names of its weights."""

    @property
    @abc.abstractmethod
    def model_type(self) -> str:
        """``model_type`` in the Hugging Face ``config.json`` that this family reads."""

    @property
    @abc.abstractmethod
    def config_keys(self) -> frozenset[str]:
        """Keys a configuration of this family may hold."""

    @abc.abstractmethod
    def shape(self, config: Mapping[str, Any]) -> ModelShape:
        """The dimensions that layouts and checks need. Raises KeyError for a missing key."""

    @abc.abstractmethod
    def shaped(self, config: Mapping[str, Any], shape: ModelShape) -> dict[str, Any]:
        """A configuration like ``config``, with these dimensions."""

    @abc.abstractmethod
    def layers(self, config: Any, attention: str) -> list[Any]:
        """The layers in order, as ``easyllm.models.layers.LayerSpec``."""

    @abc.abstractmethod
    def assembly(self, config: Any, attention: str, router_aux_loss: float | None) -> Any:
        """How layers are computed, as ``easyllm.models.layers.Assembly``, with the coefficient of
        ``training.router_aux_loss``."""

    def param_specs(self, config: Mapping[str, Any]) -> list[LayerShape] | None:
        """The layers in order, known without building them, for checks before anything starts.
        None where they are known only by building them. Raises KeyError for a missing key."""
        return None

    def names(self, config: Any) -> Any:
        """The names in the files of these layers' parameters, as an
        ``easyllm.models.weight_mapping.WeightMapping``; None where the files use the layers' own
        names."""
        return None

    def fresh(self, config: Any, seed: int) -> Any:
        """Random weights drawn from ``seed``, as ``easyllm.models.weights.Weights``; None for
        matrices from a normal distribution, biases 0 and norms 1."""
        return None

    def unusable(self, config: Mapping[str, Any]) -> tuple[str, Sequence[str]]:
        """Why no model with this configuration can be trained, empty where it can; and the types of
        models that can, where the type is the reason."""
        return "", ()

    def uncut(self, config: Mapping[str, Any]) -> str:
        """Why the layers cannot be divided over pipeline stages; empty where they can."""
        return ""

    def attentions(self, config: Mapping[str, Any]) -> Sequence[str]:
        """The values of ``model.attention`` that the model has; empty where it has all."""
        return ()

    def changes_logits(self, config: Mapping[str, Any]) -> bool:
        """Whether the model scales or caps its logits after the head, so that the head cannot be
        computed with the loss."""
        return False

    def active(self, config: Mapping[str, Any]) -> float:
        """The share of the parameters that a token uses; less than 1 with experts."""
        return 1.0

    def alibi(self, config: Mapping[str, Any]) -> bool:
        """Whether the model uses ALiBi, which adds positions to the attention scores."""
        return False

    @property
    def one_layout(self) -> bool:
        """Whether the native layout is the canonical one too."""
        return False

    def native_only(self, config: Mapping[str, Any]) -> str:
        """Why the model can be exported in its own layout only; empty where ``canonical`` gives
        another."""
        return ""

    def canonical(self, config: Any) -> Any:
        """The configuration of the same model in the canonical layout, which every engine runs and
        whose parameters have the layers' own names. By default the model's own configuration."""
        return config

    def canonical_tensor(self, config: Any, name: str, tensor: Any) -> Any:
        """The layers' parameter ``name`` in the canonical layout."""
        return tensor


@dataclass(frozen=True)
class LayerShape:
    """A layer by the names and shapes of its parameters."""

    name: str
    """The prefix of its parameters' names, e.g. ``model.layers.3``."""
    parameters: Mapping[str, tuple[int, ...]]
    """Shapes by full name in the model; empty where the layer shares those of another."""
    decoder: bool = False
    tied_to: str | None = None
    """The layer whose ``weight`` it shares."""
    linears: tuple[str, ...] | None = field(default=None, compare=False)
    """The full names of its linear modules; None where every matrix is one."""


@dataclass(frozen=True)
class ModelShape:
    """Dimensions of a decoder."""

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    tied: bool

    @property
    def layer_parameters(self) -> int:
        """Parameters of one decoder layer with a gated feed-forward, without biases."""
        attention = self.hidden_size * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size

    @property
    def embedding_parameters(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        embeddings = self.embedding_parameters * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + embeddings + self.hidden_size
