"""The list of layers computes what transformers' own model computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from easyllm.models.layers import causal_loss, llama_layers, parameter_shapes
from easyllm.models.weights import RandomWeights, WeightFiles, fill
from tests.support import LLAMA

VARIANTS = {
    "grouped": {},
    "tied": {"tie_word_embeddings": True, "pad_token_id": 0},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "scaled": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
}


def chained(config: LlamaConfig, folder: Path, ids: torch.Tensor, attention: str) -> torch.Tensor:
    """Logits of the layers filled from the folder's files, one after the other."""
    weights = WeightFiles(folder)
    layers = llama_layers(config, attention)
    weights.check(parameter_shapes(layers))
    sources = {spec.name: spec for spec in layers}
    value = ids
    for spec in layers:
        source = spec.tied_to or spec.name
        owner = fill(sources[source].build(), source, weights, torch.float32, torch.device("cpu"))
        layer = spec.build() if spec.tied_to else owner
        if spec.tied_to:
            layer.weight = owner.weight
        value = layer(value)
    return value


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_loss_are_transformers_own(tmp_path: Path, variant: str, attention: str) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**{**LLAMA, **VARIANTS[variant]})
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():  # as they come, biases and norms would hide mistakes
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    ids = torch.randint(0, 512, (2, 40))
    labels = ids.where(torch.rand(ids.shape) < 0.6, -100)
    with torch.no_grad():
        logits = chained(config, tmp_path, ids, attention)
        expected = model(input_ids=ids, labels=labels)
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=1e-4)
    trained = int((labels[:, 1:] != -100).sum())
    loss = causal_loss(logits, labels, 1 / trained)
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=1e-5)


def test_positions_are_exact_in_bfloat16(tmp_path: Path) -> None:
    config = LlamaConfig(**{**LLAMA, "max_position_embeddings": 4096})
    expected = LlamaForCausalLM(config).model.rotary_emb
    layer = llama_layers(config, "sdpa")[1].build()
    layer = fill(
        layer, "model.layers.0", RandomWeights(config, 0), torch.bfloat16, torch.device("cpu")
    ).bfloat16()
    positions = torch.arange(4096)[None]
    hidden = torch.zeros(1, 4096, 32, dtype=torch.bfloat16)
    for ours, theirs in zip(
        layer.rotary(hidden, positions), expected(hidden, positions), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}


def test_random_weights_depend_on_seed_and_name_alone() -> None:
    config = LlamaConfig(**LLAMA, initializer_range=0.05, pad_token_id=7)
    first, again, other = (RandomWeights(config, seed) for seed in (1, 1, 2))
    shapes = parameter_shapes(llama_layers(config, "sdpa"))
    drawn = {name: first.tensor(name, shape) for name, shape in shapes.items()}
    for name in reversed(list(shapes)):
        assert torch.equal(again.tensor(name, shapes[name]), drawn[name])
    head = "lm_head.weight"
    assert not torch.equal(other.tensor(head, shapes[head]), drawn[head])
    assert not torch.equal(drawn["model.embed_tokens.weight"], drawn[head])
    assert drawn[head].std().item() == pytest.approx(0.05, rel=0.05)
    assert drawn["model.embed_tokens.weight"][7].abs().max() == 0
    assert drawn["model.norm.weight"].eq(1).all()


def test_parameters_have_transformers_names_and_shapes() -> None:
    for tied in (True, False):
        config = LlamaConfig(**{**LLAMA, "tie_word_embeddings": tied})
        expected = {
            name: parameter.shape for name, parameter in LlamaForCausalLM(config).named_parameters()
        }
        assert parameter_shapes(llama_layers(config, "sdpa")) == expected
