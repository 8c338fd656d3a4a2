"""Every family computes what its published model computes: logits, gradients, packed rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from easyllm.errors import UserError
from easyllm.models.attention.documents import Documents, arguments
from easyllm.models.custom.modeling_baichuan import AlibiAttention, alibi_slopes
from easyllm.models.layers import causal_loss
from tests.models.assembled import Assembled
from tests.models.small import SMALL, WRITTEN_OUT, Reference, paper_slopes, save
from tests.models.test_layers import PACKED, packed
from tests.models.varlen_on_cpu import register

register()


@pytest.fixture(scope="module", params=SMALL)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    name: str = request.param
    return name, save(name, tmp_path_factory.mktemp(name))


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """To 1e-5 of the largest value, in fp32."""
    scale = float(theirs.abs().max())
    assert scale > 0
    torch.testing.assert_close(ours / scale, theirs / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_and_gradients(saved: tuple[str, Path], attention: str) -> None:
    name, folder = saved
    ours, theirs = Assembled.saved(folder, attention), Reference(name, folder)
    torch.manual_seed(0)
    ids = torch.randint(0, 512, (2, 40))
    labels = ids.where(torch.rand(ids.shape) < 0.6, -100)
    found, expected = ours.logits(ids), theirs.logits(ids)
    close(found.detach(), expected.detach())
    for logits in (found, expected):
        causal_loss(logits, labels, 0.01).backward()
    gradients = ours.gradients()
    assert gradients.keys() == theirs.weights.keys()
    for tensor, gradient in gradients.items():
        expected = theirs.weights[tensor].grad
        assert expected is not None
        padding = SMALL[name].get("pad_token_id")
        if tensor == "model.embed_tokens.weight" and padding is not None:
            # what is written out has no padding row
            gradient, expected = (torch.cat([g[:padding], g[padding + 1 :]]) for g in
                                  (gradient, expected))  # fmt: skip
        close(gradient, expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention", "varlen"])
def test_packed_rows_are_as_documents_by_themselves(
    saved: tuple[str, Path], attention: str
) -> None:
    name, folder = saved
    if attention == "varlen" and getattr(AutoConfig.from_pretrained(folder), "alibi", False):
        with pytest.raises(UserError, match="varlen does not support ALiBi"):
            Assembled.saved(folder, attention)
        return
    ours, theirs = Assembled.saved(folder, attention), Reference(name, folder)
    ids, positions, _ = packed()
    with torch.no_grad():
        found = ours.logits(ids, positions)
        alone = [
            theirs.logits(tokens[None])[0]
            for row, lengths in zip(ids, PACKED, strict=True)
            for tokens in row.split(lengths)
        ]
    close(found.flatten(0, 1), torch.cat(alone))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_the_class_that_an_export_carries(tmp_path: Path, name: str, attention: str) -> None:
    """By itself and in batches padded on the left; with and without a cache."""
    folder = save(name, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    ).eval()
    ids = torch.randint(1, 512, (1, 30))
    reference = Reference(name, folder)
    with torch.no_grad():
        close(model(input_ids=ids).logits, reference.logits(ids))
        expected = ids
        for _ in range(8):
            following = reference.logits(expected)[:, -1:].argmax(-1)
            expected = torch.cat([expected, following], dim=1)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(34) >= 4).long()[None]
    for cached in (True, False):
        made = model.generate(
            input_ids=padded, attention_mask=mask, max_new_tokens=8, min_new_tokens=8,
            do_sample=False, use_cache=cached, eos_token_id=None,
        )  # fmt: skip
        assert made[:, 4:].tolist() == expected.tolist()


def test_qwen_beyond_its_seq_length_is_refused(tmp_path: Path) -> None:
    """Whether it comes at once or token by token; without the stretching it is computed."""
    folder = save("qwen", tmp_path, over={"seq_length": 32})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(1, 512, (1, 33))
    expected = Reference("qwen", folder).logits(ids)
    with torch.no_grad():
        close(model(input_ids=ids[:, :32]).logits, expected[:, :32].detach())
        with pytest.raises(ValueError, match="33 tokens, and seq_length is 32"):
            model(input_ids=ids)
        with pytest.raises(ValueError, match="33 tokens, and seq_length is 32"):
            model.generate(
                input_ids=ids[:, :30], max_new_tokens=8, eos_token_id=None, pad_token_id=0
            )
        model.config.use_dynamic_ntk = model.config.use_logn_attn = False
        close(model(input_ids=ids).logits, expected.detach())


@pytest.mark.parametrize("heads", [1, 2, 5, 8, 12, 32, 40])
def test_slopes_are_the_papers(heads: int) -> None:
    assert alibi_slopes(heads).tolist() == pytest.approx(paper_slopes(heads), rel=1e-6)


def test_forty_heads_have_the_slopes_of_32_and_every_other_of_64() -> None:
    slopes = alibi_slopes(40).tolist()
    assert slopes[0] == pytest.approx(2**-0.25) and slopes[31] == pytest.approx(2**-8)
    assert slopes[32:34] == pytest.approx([2**-0.125, 2**-0.375])


def test_padding_is_taken_in_every_form() -> None:
    """As boolean and as additive masks, and as flash attention is given it."""
    from transformers import LlamaConfig

    layer = AlibiAttention(LlamaConfig(hidden_size=40, num_attention_heads=5), 0)
    like = torch.zeros(2, 5, 4, 8)
    real = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    causal = torch.ones(4, 4, dtype=torch.bool).tril()
    allowed = causal & real[:, None, None, :].bool()
    added = torch.zeros(2, 1, 4, 4).masked_fill(~allowed, torch.finfo(torch.float32).min)
    found = [
        layer.bias(layer.behind(4, 4, like.device), mask, like) for mask in (real, allowed, added)
    ]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert (found[0][0, :, :, 0] < -1e30).all() and (found[0][1, :, 3, 0] > -4).all()


def test_a_flash_kernel_is_told_of_documents_with_alibi(tmp_path: Path) -> None:
    """Not what it makes of it, which needs a GPU."""
    config = AutoConfig.from_pretrained(save("baichuan_13b", tmp_path))
    stage: Any = Assembled(config, attention="flash_attention_2").stage
    assert stage.model.config._attn_implementation == "easyllm_flash_alibi"
    given = arguments(stage.model.config, Documents.of(packed()[1]), torch.float32, alibi=True)
    assert given["cu_seq_lens_q"].tolist() == [0, 7, 8, 28, 40, 80, 92, 120]
