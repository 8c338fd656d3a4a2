"""A model in layers computes what transformers' own model computes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig

from easyllm.errors import UserError
from easyllm.models.attention.documents import Documents, arguments
from easyllm.models.custom.modeling_baichuan import NormHead
from easyllm.models.families import Llama
from easyllm.models.layers import causal_loss, tensor_shapes, unprojected
from easyllm.models.random_weights import RandomWeights
from tests.models.assembled import Assembled
from tests.models.varlen_on_cpu import register
from tests.support import LLAMA

register()
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


def saved(folder: Path, **changes: object) -> LlamaForCausalLM:
    """A model with drawn weights: as they come, biases and norms would hide mistakes."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**LLAMA, **changes})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


PACKED = [[7, 1, 20, 12], [40], [12, 28]]
"""Lengths of the documents in each row of a batch."""


def packed() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, positions and labels of ``PACKED``; documents' first tokens are untrained."""
    torch.manual_seed(3)
    ids = torch.randint(0, 512, (len(PACKED), 40))
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in PACKED])
    labels = ids.where((torch.rand(ids.shape) < 0.6) & (positions > 0), -100)
    return ids, positions, labels


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention", "varlen"])
def test_packed_documents_are_as_by_themselves(tmp_path: Path, attention: str) -> None:
    model = saved(tmp_path)
    ids, positions, labels = packed()
    with torch.no_grad():
        logits = Assembled.saved(tmp_path, attention).logits(ids, positions)
        alone, loss = [], 0.0
        for row, lengths in enumerate(PACKED):
            for tokens, own in zip(
                ids[row].split(lengths), labels[row].split(lengths), strict=True
            ):
                found = model(input_ids=tokens[None]).logits
                alone.append(found[0])
                loss += float(causal_loss(found, own[None]))
    torch.testing.assert_close(logits.flatten(0, 1), torch.cat(alone), atol=1e-4, rtol=1e-4)
    trained = int((labels != -100).sum())
    assert float(causal_loss(logits, labels)) / trained == pytest.approx(loss / trained, abs=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention", "varlen"])
def test_a_document_does_not_see_the_others_of_its_row(tmp_path: Path, attention: str) -> None:
    saved(tmp_path)
    ids, positions, _ = packed()
    changed = ids.clone()
    changed[0, 8:28] = (changed[0, 8:28] + 1) % 512
    with torch.no_grad():
        before = Assembled.saved(tmp_path, attention).logits(ids, positions)
        after = Assembled.saved(tmp_path, attention).logits(changed, positions)
    differs = (before != after).any(dim=2)
    assert differs[0, 8:28].all()
    differs[0, 8:28] = False
    assert not differs.any()


def test_documents_that_are_known_are_not_read_from_the_device() -> None:
    """A tensor on meta has no content that could be."""
    positions = packed()[1]
    there = Documents.of(positions.to("meta"), positions)
    here = Documents.of(positions)
    assert (there.lengths, there.longest) == (here.lengths, here.longest)
    assert there.bounds.device.type == "meta" and there.bounds.shape == here.bounds.shape
    with pytest.raises((NotImplementedError, RuntimeError)):
        Documents.of(positions.to("meta"))


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
def test_gradients_are_those_of_a_mask_over_the_row(attention: str, window: int | None) -> None:
    config: Any = LlamaConfig(**LLAMA)
    if window:
        config = MistralConfig(**{**LLAMA, "model_type": "mistral", "sliding_window": window})
    ids, positions, _ = packed()
    found = []
    for name in (attention, "eager"):
        model = Assembled(config, attention=name)
        model.logits(ids, positions).square().sum().backward()
        found.append(model.gradients().values())
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_compiled_layers_are_compiled_once_for_documents_of_any_lengths() -> None:
    """One graph for a layer with varlen attention in it: nothing but the numbers of documents and
    the length of the longest, which torch makes variables of when they change, may reach it."""
    graphs = CompileCounter()

    def compiled(layer: nn.Module) -> None:
        layer.compile(backend=graphs, fullgraph=True)

    model = Assembled(LlamaConfig(**LLAMA), attention="varlen", changed=compiled)
    ids = packed()[0][:1]
    for lengths in ([40], [7, 1, 32], [12, 28], [5, 5, 5, 25], [39, 1], [3, 30, 4, 3], [20, 20]):
        model.logits(ids, torch.cat([torch.arange(length) for length in lengths])[None])
    assert graphs.frame_count <= 3  # as it is, with a variable number, with a variable length


def test_flash_attention_is_told_where_documents_lie() -> None:
    """Not what it makes of it, which needs a GPU."""
    config = LlamaConfig(**LLAMA)
    config._attn_implementation = "flash_attention_2"
    told = arguments(config, Documents.of(packed()[1]), torch.float32)
    assert told["cu_seq_lens_q"].tolist() == [0, 7, 8, 28, 40, 80, 92, 120]
    assert told["cu_seq_lens_q"].dtype == torch.int32
    assert told["max_length_q"] == told["max_length_k"] == 40


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_loss_are_transformers_own(tmp_path: Path, variant: str, attention: str) -> None:
    model = saved(tmp_path, **VARIANTS[variant])
    ids = torch.randint(0, 512, (2, 40))
    labels = ids.where(torch.rand(ids.shape) < 0.6, -100)
    with torch.no_grad():
        logits = Assembled.saved(tmp_path, attention).logits(ids)
        expected = model(input_ids=ids, labels=labels)
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=1e-4)
    trained = int((labels[:, 1:] != -100).sum())
    loss = causal_loss(logits, labels, 1 / trained)
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=1e-5)


def test_positions_are_exact_in_bfloat16() -> None:
    """Rounded to bfloat16, they would be wrong by radians after a thousand tokens."""
    config = LlamaConfig(**{**LLAMA, "max_position_embeddings": 4096})
    expected = LlamaForCausalLM(config).model.rotary_emb
    model = Assembled(config)
    for layer in model.modules.values():
        layer.bfloat16()
    rotary = model.stage.model.model.rotary_emb
    found: list[Any] = []
    rotary.register_forward_hook(lambda module, given, output: found.append(output))
    positions = torch.arange(4096)[None]
    with torch.no_grad():
        assert model.logits(positions % 512, positions).dtype == torch.bfloat16
    hidden = torch.zeros(1, 4096, 32, dtype=torch.bfloat16)
    for ours, theirs in zip(found[0], expected(hidden, positions), strict=True):
        assert torch.equal(ours, theirs)


def test_random_weights_depend_on_seed_and_name_alone() -> None:
    config = LlamaConfig(**LLAMA, initializer_range=0.05, pad_token_id=7)
    first, again, other = (RandomWeights(config, seed) for seed in (1, 1, 2))
    shapes = tensor_shapes(Llama().layers(config, "sdpa"))
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
        assert tensor_shapes(Llama().layers(config, "sdpa")) == expected


HEADS: dict[str, Callable[[], Any]] = {
    "matrix": lambda: nn.Linear(48, 800, bias=False),
    "normalised": lambda: NormHead(48, 800, bias=False),
    "tied": lambda: partial(
        lambda embedding, hidden: nn.functional.linear(hidden, embedding.weight),
        nn.Embedding(800, 48),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", HEADS)
def test_a_loss_that_takes_the_head_with_it_is_the_loss_of_its_logits(
    kind: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(4)
    head = HEADS[kind]()
    module = head.args[0] if kind == "tied" else head
    module.to(dtype)
    ids = torch.randint(0, 800, (2, 130))
    ids[0, 20:50] = -100
    given = torch.randn(2, 130, 48).to(dtype)
    found = []
    for take in (lambda hidden: head(hidden), partial(unprojected, head)):
        hidden = given.clone().requires_grad_()
        module.zero_grad()
        loss = causal_loss(take(hidden), ids, 0.01)
        loss.backward()
        assert loss.dtype == torch.float32
        found.append([loss.detach(), hidden.grad.float(), module.weight.grad.float()])
    close = 1e-5 if dtype == torch.float32 else 2e-2
    for whole, some in zip(*found, strict=True):
        assert float((some - whole).norm() / whole.norm()) < close
    assert float(found[1][0]) == pytest.approx(float(found[0][0]), rel=1e-3)


def test_a_head_that_is_no_matrix_is_not_left_to_the_loss() -> None:
    with pytest.raises(UserError, match=r"training\.loss=.* a Sequential; give training\.loss="):
        unprojected(nn.Sequential(nn.Linear(4, 8)), torch.zeros(1, 2, 4))
