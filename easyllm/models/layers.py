"""A model as one list of layers that use transformers' own classes.

Each layer takes the tensor that the one before it returns: token ids ``(rows, tokens)`` into the
embedding, hidden states ``(rows, tokens, hidden)`` through the decoder layers, logits ``(rows,
tokens, vocabulary)`` from the head. Decoder layers also get the places of the documents. Parameters
keep their Hugging Face names, so a pipeline stage, a ZeRO replica and a single process read and
write the same tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from easyllm.errors import UserError
from easyllm.models.attention.documents import Documents, arguments, implementation
from easyllm.models.custom.modeling_baichuan import NormHead, NoRotary, normal_rows
from easyllm.models.decoders.balance import Balance
from easyllm.spec.roles import LayerShape


@dataclass(frozen=True)
class LayerSpec:
    """How to build one layer."""

    name: str
    """The prefix of its parameters' names, e.g. ``model.layers.3``."""
    build: Callable[[], nn.Module]
    """Builds the layer with its parameters on the meta device; they are filled later."""
    decoder: bool = False
    """Whether the layer is called with ``Documents`` besides the tensor."""
    tied_to: str | None = None
    """The layer whose ``weight`` it shares; it then has no own weight."""
    adapt: Callable[[nn.Module], None] | None = None
    """Changes a built layer into the trained one: freezes weights, puts adapters on it."""

    def trained(self) -> nn.Module:
        """The layer as it is trained, built on the meta device."""
        module = self.build()
        if self.adapt:
            self.adapt(module)
        return module


class Rotary(LlamaRotaryEmbedding):
    """Rotary positions whose frequencies stay in fp32 when the model is cast.

    Rounded to bfloat16, as DeepSpeed would do, the positions are wrong by radians after a thousand
    tokens.
    """

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Rotary:
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            setattr(self, name, buffer.to(getattr(self, name).device))
        return self


class _Causal:
    """Wraps a decoder layer of transformers as a layer from hidden states to hidden states, causal
    within each document."""

    def __init__(self, config: PretrainedConfig, index: int, alibi: bool = False):
        with torch.device("meta"):
            super().__init__(config, index)  # type: ignore[call-arg]
        self.config, self.alibi = config, alibi
        attention: Any = self.self_attn  # type: ignore[attr-defined]
        # Qwen's layers have the window themselves, Mistral's configuration has it
        everywhere = getattr(config, "sliding_window", None)
        self.window = getattr(attention, "sliding_window", everywhere)
        self.rotary = NoRotary() if alibi else Rotary(cast(Any, config))

    def forward(self, hidden: torch.Tensor, documents: Documents) -> torch.Tensor:
        """``hidden`` and the result are ``(rows, tokens, hidden_size)``."""
        if "rotary" not in documents.shared:
            documents.shared["rotary"] = self.rotary(hidden, documents.positions)
        # called directly: torch 2.11 cannot compile super() through a name
        return super().forward(  # type: ignore[misc,no-any-return]
            hidden,
            position_embeddings=documents.shared["rotary"],
            **arguments(self.config, hidden, documents, self.window, self.alibi),
        )


class LlamaLayer(_Causal, LlamaDecoderLayer):  # type: ignore[misc]
    pass


class MistralLayer(_Causal, MistralDecoderLayer):  # type: ignore[misc]
    pass


class Qwen2Layer(_Causal, Qwen2DecoderLayer):  # type: ignore[misc]
    pass


class Qwen3Layer(_Causal, Qwen3DecoderLayer):  # type: ignore[misc]
    pass


LAYERS: dict[str, Callable[..., nn.Module]] = {
    "llama": LlamaLayer,
    "mistral": MistralLayer,
    "qwen2": Qwen2Layer,
    "qwen3": Qwen3Layer,
}
"""Decoder layers by ``model_type``; the rest of these models is the same."""


def decoder_layers(
    config: PretrainedConfig, attention: str, *, alibi: bool = False, norm_head: bool = False
) -> list[LayerSpec]:
    """The layers of a model; ``attention`` is an implementation by its name in transformers.

    With ``alibi`` the model uses ALiBi instead of rotary positions; with ``norm_head`` the head's
    rows are normalised.
    """
    config = copy.copy(config)
    config._attn_implementation = implementation(attention, alibi)
    embedding, head = "model.embed_tokens", "lm_head"
    vocabulary, hidden = config.vocab_size, config.hidden_size
    layer = LAYERS[config.model_type]
    return [
        LayerSpec(
            embedding,
            partial(
                nn.Embedding,
                vocabulary,
                hidden,
                padding_idx=config.pad_token_id,
                device="meta",
            ),
        ),
        *(
            LayerSpec(f"model.layers.{index}", partial(layer, config, index, alibi), decoder=True)
            for index in range(config.num_hidden_layers)
        ),
        LayerSpec("model.norm", partial(_norm, config)),
        LayerSpec(
            head,
            partial(
                NormHead if norm_head else nn.Linear, hidden, vocabulary, bias=False, device="meta"
            ),
            tied_to=embedding if config.tie_word_embeddings else None,
        ),
    ]


def _norm(config: PretrainedConfig) -> nn.Module:
    with torch.device("meta"):
        return LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)


def checkpoint_activations(layer: nn.Module) -> None:
    """Make a decoder layer recompute its activations in the backward pass."""
    hooks: Any = layer
    hooks.gradient_checkpointing = True
    hooks._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


def param_specs(layers: Iterable[LayerSpec]) -> list[LayerShape]:
    """The names and shapes of the layers' own parameters, without adapters."""
    return [_param_spec(spec) for spec in layers]


def _param_spec(spec: LayerSpec) -> LayerShape:
    module, begin = spec.build(), f"{spec.name}."
    own = {} if spec.tied_to else dict(module.named_parameters())
    shapes = {f"{begin}{name}": tuple(parameter.shape) for name, parameter in own.items()}
    linears = [f"{begin}{n}" for n, m in module.named_modules() if isinstance(m, nn.Linear)]
    return LayerShape(spec.name, shapes, spec.decoder, spec.tied_to, tuple(linears))


def tensor_shapes(layers: Iterable[LayerSpec]) -> dict[str, torch.Size]:
    """The shapes of the parameters and buffers that files hold, by name: shared parameters once,
    and without adapters."""
    return {
        f"{spec.name}.{name}": tensor.shape
        for spec in layers
        if spec.tied_to is None
        for name, tensor in spec.build().state_dict().items()
    }


def stored_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that files hold, by name."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return {n: tensor for n, tensor in module.state_dict().items() if n not in parameters}


def chain(
    layers: Iterable[tuple[Callable[..., Any], bool]], value: torch.Tensor, documents: Documents
) -> Any:
    """The output of consecutive layers, each with its ``LayerSpec.decoder``, for ``value``."""
    for layer, decoder in layers:
        value = layer(value, documents) if decoder else layer(value)
    return value


Forward = Callable[[torch.Tensor, Documents], Any]
"""Consecutive layers as one function of token ids or hidden states."""
Assemble = Callable[[Sequence[LayerSpec], Sequence[Callable[..., Any]]], Forward]
"""Makes that function of the layers and of their built modules. The last may be a function of
hidden states in place of the head."""


@dataclass(frozen=True)
class Assembly:
    """How a model's layers are computed."""

    assemble: Assemble
    balance: Balance | None = None
    """The loss over the routers of experts, where there is one. The functions of ``assemble`` then
    have ``easyllm.models.decoders.stage.Stage.routed``."""


def chained(specs: Sequence[LayerSpec], built: Sequence[Callable[..., Any]]) -> Forward:
    """``Assemble`` for layers that each take what the one before it returns."""
    pairs = [(layer, spec.decoder) for spec, layer in zip(specs, built, strict=True)]
    return partial(chain, pairs)


Unprojected = tuple[torch.Tensor, torch.Tensor]
"""Logits that are not computed yet: hidden states ``(rows, tokens, hidden)``, and the matrix
``(vocabulary, hidden)`` that turns them into logits."""


def head_module(head: Any) -> Any:
    """The module that has the head's matrix, where a function of it may take the head's place: the
    embedding for a tied head in a pipeline, or ``unprojected``."""
    while isinstance(head, partial):
        head = head.args[0]
    return head


def unprojected(head: Any, hidden: torch.Tensor) -> Unprojected:
    """The inputs of ``head(hidden)``, which the loss computes. Raises UserError for a head that is
    more than a matrix."""
    module = head_module(head)
    if not isinstance(module, nn.Linear | nn.Embedding):
        raise UserError(
            f"training.loss=linear_cross_entropy takes a head that is one matrix, and this is a "
            f"{type(module).__name__}; give training.loss=cross_entropy, or an adapter that "
            "leaves the head alone"
        )
    if isinstance(module, NormHead):
        return hidden, normal_rows(module.weight)
    # a separate tensor: DeepSpeed clears gradients when that of the first output arrives, and the
    # weight's own may already have been summed by then
    return hidden, module.weight.view_as(module.weight)


def causal_loss(
    logits: torch.Tensor | Unprojected, labels: torch.Tensor, scale: torch.Tensor | float = 1.0
) -> torch.Tensor:
    """Cross entropy in fp32, summed over the trained tokens and multiplied by ``scale``.

    ``logits`` is ``(rows, tokens, vocabulary)``; ``labels`` ``(rows, tokens)`` holds at each
    position its own token, or -100 where that token is not trained.
    """
    # labels are shifted instead of logits, whose shifted copy would be the largest tensor
    targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100).flatten()
    if isinstance(logits, torch.Tensor):
        return scale * nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), targets, reduction="sum"
        )
    hidden, weight = logits
    # torch would sum bfloat16 losses in bfloat16
    losses = nn.functional.linear_cross_entropy(
        hidden.flatten(0, 1), weight, targets, reduction="none",
        options=nn.LinearCrossEntropyOptions(),
    )  # fmt: skip
    return scale * losses.float().sum()
