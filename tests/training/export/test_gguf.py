"""A model exported as GGUF computes what it did, with the same ids, and is read back by us and by
transformers. llama.cpp itself (xllamacpp 2026.10, build 11549) gave the logits of every f32 file
that is written here within 2e-6, of Mistral within its window."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import MODEL_ARCH, get_tensor_name_map
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from easyllm.errors import UserError
from easyllm.inference import prompts
from easyllm.models import source
from easyllm.models.gguf import header, model, names, rope, tokenizer
from easyllm.spec.checks import problems
from easyllm.training.checkpointing import checkpoints
from easyllm.training.export.gguf import model as described
from easyllm.training.export.hf import export
from tests.models.gguf_files import END, byte_level, write
from tests.models.small import SMALL, save
from tests.support import merged, run_spec

YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 10000.0,
}
NATIVE: dict[str, Any] = {}
MODERN = {"layout": "canonical"}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    **{
        name: (name, {}, NATIVE)
        for name in ("llama3", "smollm2", "mistral", "qwen2", "qwen2_5_tied", "qwen3")
    },
    "biased": ("llama", {"attention_bias": True, "mlp_bias": True}, NATIVE),
    "wide_heads": ("llama", {"head_dim": 16}, NATIVE),
    "yarn": ("llama", {"rope_parameters": YARN}, NATIVE),
    "yarn_qwen": (
        "qwen3",
        {"rope_parameters": {**YARN, "attention_factor": 0.7, "beta_fast": 24.0}},
        NATIVE,
    ),
    "linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}},
        NATIVE,
    ),
    "qwen": ("qwen", {"dtype": "float32"}, MODERN),
    "baichuan": ("baichuan2_7b", {"dtype": "float32"}, MODERN),
}
IDS = torch.tensor([[5, 80, 33, 2, 200, 19, 77, 140, 9]])
PLAIN = ("smollm2", "qwen2", "wide_heads", "qwen", "baichuan")
"""Cases that transformers' own reader reads rightly."""
TURN = "{{ messages[0]['content'] }}"


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.convert(header.read(write(folder / "a.gguf")), folder)
    (folder / "chat_template.jinja").write_text(TURN)
    return folder


def checkpoint(root: Path, beside: Path, name: str, over: dict[str, Any]) -> Any:
    """A whole checkpoint of a small model with a tokenizer."""
    folder = root / "step-00000001"
    weights = save(name, folder / "weights", over=over)
    for file in (*beside.glob("token*.json"), beside / "chat_template.jinja"):
        shutil.copy(file, weights)
    (weights / "generation_config.json").write_text('{"eos_token_id": [0, 7]}')
    checkpoints.write_manifest(folder, {"step": 1, "samples": 8, "trained_with": {}})
    return checkpoints.opened(folder)


def exported(root: Path, found: Any, **settings: Any) -> Path:
    run = run_spec(root, {"name": "small", "export": {"format": "gguf", **settings}})
    told = export(found, root / "gguf", run)
    assert [file.name for file in (root / "gguf").iterdir()] == ["small.gguf"] == [told["file"]]
    return root / "gguf" / "small.gguf"


def logits(folder: Path, **more: Any) -> torch.Tensor:
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more).eval()
    with torch.no_grad():
        found: torch.Tensor = loaded(IDS).logits
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_same_logits_and_ids(case: str, tmp_path: Path, tokenizer_folder: Path) -> None:
    name, over, layout = CASES[case]
    found = checkpoint(tmp_path, tokenizer_folder, name, over)
    export(found, tmp_path / "plain", run_spec(tmp_path, {"export": layout}))
    expected = logits(tmp_path / "plain")
    file = exported(tmp_path, found, **layout, gguf_type="f32")
    back = source.folder(str(file), tmp_path / "cache")
    torch.testing.assert_close(logits(back), expected, atol=2e-6, rtol=1e-5)
    if case in PLAIN:  # of the others it passes over biases, scaled positions or head_dim
        theirs = logits(
            file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True)
        )
        torch.testing.assert_close(theirs, expected, atol=2e-6, rtol=1e-5)
    ours, theirs_ = (AutoTokenizer.from_pretrained(place) for place in (back, tmp_path / "plain"))
    text = f"if x == 12:\n    naïve {END} 你好"
    assert ours(text)["input_ids"] == theirs_(text)["input_ids"]
    assert ours.chat_template == theirs_.chat_template == TURN
    assert ours.eos_token == END
    written = json.loads((back / "generation_config.json").read_text("utf-8"))
    assert written["eos_token_id"] == [0, 7]


@pytest.mark.parametrize(("kind", "step"), [("bf16", 2**-8), ("f16", 2**-11), ("q8_0", 0.6 / 127)])
def test_rounded_types(kind: str, step: float, tmp_path: Path, tokenizer_folder: Path) -> None:
    """By at most half a step; of Q8_0, whose scales are float16, a 127th of the block's largest."""
    found = checkpoint(tmp_path, tokenizer_folder, "qwen3", {})
    whole, rounded = (
        source.folder(str(exported(tmp_path / each, found, gguf_type=each)), tmp_path / each)
        for each in ("f32", kind)
    )
    before, after = (
        dict(AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).named_parameters())
        for place in (whole, rounded)
    )
    for name, value in before.items():
        error = (after[name] - value).abs()
        if value.ndim == 1:
            assert not error.any()
            continue
        assert error.any()
        size = value.abs()
        if kind == "q8_0":
            size = size.reshape(-1, 32).amax(1, keepdim=True).expand(-1, 32).reshape(size.shape)
        assert (error <= step * size + 1e-7).all()


def test_bfloat16_is_kept_bit_by_bit(tmp_path: Path, tokenizer_folder: Path) -> None:
    """Without ``gguf_type`` the file has the checkpoint's own."""
    found = checkpoint(tmp_path, tokenizer_folder, "smollm2", {"dtype": "bfloat16"})
    before = save("smollm2", found.weights, torch.bfloat16)
    back = source.folder(str(exported(tmp_path, found)), tmp_path / "cache")
    (first, second) = (
        AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).state_dict()
        for place in (before, back)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_window_is_the_context_of_the_file(tmp_path: Path, tokenizer_folder: Path) -> None:
    found = checkpoint(tmp_path, tokenizer_folder, "mistral", {})
    read = header.read(exported(tmp_path, found))
    assert read.of_model("context_length") == SMALL["mistral"]["sliding_window"] == 9


def test_names_are_those_of_the_gguf_package() -> None:
    for arch, type_ in ((MODEL_ARCH.LLAMA, "llama"), (MODEL_ARCH.QWEN3, "qwen3")):
        theirs = get_tensor_name_map(arch, 2)
        for part in ("self_attn.q_proj", "mlp.down_proj", "input_layernorm"):
            ours = names.in_gguf(f"model.layers.1.{part}.weight")
            assert ours == f"{theirs.get_name(f'model.layers.1.{part}')}.weight", type_
        for module in names.OUTER:
            assert names.in_gguf(f"{module}.weight") == f"{theirs.get_name(module)}.weight"
    norms = get_tensor_name_map(MODEL_ARCH.QWEN3, 2)
    for inner, outer in names.WITHIN.items():
        assert norms.get_name(f"model.layers.0.{inner}") == f"blk.0.{outer}"


def test_llama_3s_scaling_is_told_from_its_factors(tmp_path: Path) -> None:
    published = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
                 "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                 "original_max_position_embeddings": 8192}  # fmt: skip
    of = {"general.architecture": "llama", "llama.context_length": 131072,
          "llama.rope.freq_base": 500000.0}  # fmt: skip
    read = header.Header(tmp_path, of, {})
    factors = rope.factors(published, 128)
    assert factors is not None and rope.parameters(read, 128, factors) == published
    for changed in ({"factor": 32.0}, {"low_freq_factor": 2.0, "high_freq_factor": 3.0}):
        given = rope.factors({**published, **changed}, 128)
        again = rope.factors(rope.parameters(read, 128, given), 128)
        assert again == pytest.approx(given, rel=1e-4)
    with pytest.raises(UserError, match="are not Llama 3's scaling"):
        rope.parameters(read, 128, [1.0, 5.0] * 32)


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"model_type": "qwen"}, r"llama, mistral, qwen2, qwen3, not qwen; .*layout=canonical"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "positions of rope_type dynamic"),
        ({"rope_parameters": {**YARN, "truncate": False}}, "YaRN with truncate=false"),
        ({"model_type": "qwen3", "attention_bias": True}, "no qwen3 with attention_bias"),
        ({"model_type": "qwen2", "head_dim": 16}, "no qwen2 of 4 heads of 16 in 32"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise(over: dict[str, Any], said: str) -> None:
    plain = {**SMALL["llama"], "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    assert described(plain)["attention.key_length"] == 8
    with pytest.raises(UserError, match=said) as raised:
        described({**plain, **over})
    assert str(raised.value).startswith("export.format=gguf")


def test_a_refused_export_leaves_the_old_one(tmp_path: Path, tokenizer_folder: Path) -> None:
    found = checkpoint(tmp_path, tokenizer_folder, "llama", {})
    file = exported(tmp_path, found)
    before = file.read_bytes()
    large = checkpoint(tmp_path / "large", tokenizer_folder, "llama", {})
    weights = AutoModelForCausalLM.from_pretrained(large.weights)
    weights.model.layers[1].mlp.down_proj.weight.data[3, 3] = 70000.0
    weights.save_pretrained(large.weights)
    with pytest.raises(UserError, match=r"blk\.1\.ffn_down\.weight has values beyond float16's"):
        exported(tmp_path, large, gguf_type="f16")
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".gguf")]


def test_inference_takes_the_file(tmp_path: Path, tokenizer_folder: Path) -> None:
    found = checkpoint(tmp_path, tokenizer_folder, "llama", {})
    run = run_spec(tmp_path, {"name": "small", "export": {"format": "gguf"}})
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="add export to stages"):
        prompts.model_path(run)
    export(found, tmp_path / "run" / "gguf", run)
    file = tmp_path / "run" / "gguf" / "small.gguf"
    assert prompts.model_path(run) == str(file) and prompts.model_files(run) == [file]
    folder = prompts.model_folder(run)
    torch.testing.assert_close(logits(folder), logits(found.weights))
    unknown = write(tmp_path / "b.gguf", pre="no-such")
    asked = run_spec(tmp_path, {"inference": {"model": str(unknown)}})
    (tmp_path / "models").mkdir(exist_ok=True)
    with pytest.raises(UserError, match=r"b\.gguf"):
        prompts.model_folder(asked)


@pytest.mark.parametrize(
    ("over", "key", "remedy"),
    [
        ({"export": {"gguf_type": "q8_0"}}, "export.gguf_type", "give export.format=gguf"),
        ({"export": {"format": "gguf", "dtype": "float16"}}, "export.dtype", "give export.gguf_"),
        ({"export": {"format": "gguf", "adapter": "adapter"}}, "export.format", "merged"),
        (
            {"export": {"format": "gguf"},
             "model": {"family": {"_target_": "easyllm.models.families.Baichuan"}}},
            "export.format", "give export.layout=canonical",
        ),
    ],
)  # fmt: skip
def test_problems_of_the_spec(over: dict[str, Any], key: str, remedy: str, tmp_path: Path) -> None:
    run = run_spec(tmp_path, merged({"stages": ["export"]}, over))
    found = {problem.key: problem for problem in problems(run)}
    assert remedy in (found[key].remedy or "")


def file_of(tmp_path: Path, tokenizer_folder: Path, case: str = "llama") -> Path:
    return exported(tmp_path, checkpoint(tmp_path, tokenizer_folder, case, {}), gguf_type="f32")


def changed(read: header.Header, **keys: Any) -> header.Header:
    of = {f"{read.architecture}.{key.replace('__', '.')}": value for key, value in keys.items()}
    return header.Header(read.file, {**read.metadata, **of}, read.tensors)


def test_models_that_are_not_read_exactly_are_refused(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    read = header.read(file_of(tmp_path, tokenizer_folder))
    for keys, said in (
        ({"expert_count": 8}, "8 experts"),
        ({"attention__head_count_kv": [1, 2]}, "layers of different numbers of heads"),
        ({"attention__causal": False}, "is not a generating model"),
        ({"rope__dimension_count": 4}, r"positions of \[4, 8\]"),
        ({"rope__scaling__type": "longrope"}, "rope.scaling.type=longrope is not read"),
        ({"block_count": None}, "llama.block_count is None"),
    ):
        with pytest.raises(UserError, match=said):
            model.config(changed(read, **keys))
    with pytest.raises(UserError, match=r"its blk\.0\.ffn_gate\.weight has the shape \(64, 32\)"):
        model.convert(changed(read, feed_forward_length=63), tmp_path)
    spare = {**read.tensors, "blk.0.attn_sinks.weight": read.tensors["output_norm.weight"]}
    with pytest.raises(
        UserError, match=r"holds blk\.0\.attn_sinks\.weight, which llama does not have"
    ):
        model.convert(header.Header(read.file, read.metadata, spare), tmp_path)


def test_a_file_whose_tensors_are_cut_short(tmp_path: Path, tokenizer_folder: Path) -> None:
    file = file_of(tmp_path, tokenizer_folder)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"ends at [\d,]+ bytes, before its last tensor"):
        source.folder(str(file), tmp_path / "cache")


def test_vocabulary_is_small_enough() -> None:
    assert len(byte_level()[0]) <= SMALL["llama"]["vocab_size"]
