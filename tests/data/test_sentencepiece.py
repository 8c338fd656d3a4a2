"""Baichuan's SentencePiece vocabulary without its code: the ids are SentencePiece's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import AutoTokenizer

import easyllm.models.custom  # noqa: F401
from easyllm.data.tokenizers import Pretrained
from easyllm.errors import UserError
from tests.support import run_spec

LINES = [
    "The quick brown fox jumps over the lazy dog, 1234567 times.",
    "价格是 3.14 元，今天天气很好。",
    "Привет, мир! Größe, naïve café.",
    "def f(x):\n\treturn  x ** 2",
    "全角ＡＢＣ　と　半角 abc ﬁ ½",
]
TEXTS = [*LINES, "", " ", " a", "  two  spaces  ", "tab\tand\nline", "𝔘nseen 🙂 signs",
         "\n\n" + LINES[0]]  # fmt: skip
SPECIAL = {"bos_token": "<s>", "eos_token": {"content": "</s>", "__type": "AddedToken"},
           "unk_token": {"content": "<unk>"}}  # fmt: skip


def published(folder: Path, **options: Any) -> sentencepiece.SentencePieceProcessor:
    """A folder as Baichuan's is published; returns its vocabulary."""
    folder.mkdir(exist_ok=True)
    (folder / "lines.txt").write_text("\n".join(LINES * 20), "utf-8")
    settings = {
        "model_type": "bpe",
        "vocab_size": 420,
        "byte_fallback": True,
        "unk_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "split_digits": True,
        "remove_extra_whitespaces": False,
        "user_defined_symbols": ["<reserved_106>", "<reserved_107>"],
        "hard_vocab_limit": False,
        "minloglevel": 2,
        **options,
    }
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "lines.txt"), model_prefix=str(folder / "tokenizer"), **settings
    )
    config = {
        "tokenizer_class": "BaichuanTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
        "add_bos_token": False,
        "add_eos_token": False,
        "model_max_length": 4096,
        **SPECIAL,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    (folder / "config.json").write_text('{"model_type": "baichuan"}', "utf-8")
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def made(tmp_path: Path, origin: Path) -> Any:
    folder = tmp_path / "store"
    folder.mkdir()
    Pretrained(path=str(origin)).make(run_spec(tmp_path, {}), folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("dummy", [True, False])
@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
def test_ids_are_sentencepieces_own(tmp_path: Path, rule: str, dummy: bool) -> None:
    origin = tmp_path / "Baichuan"
    own = published(origin, normalization_rule_name=rule, add_dummy_prefix=dummy)
    tokenizer = made(tmp_path, origin)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids == own.encode(text), text
        if rule == "identity":
            assert tokenizer.decode(ids) == text
    chat = tokenizer("<reserved_106>Hi<reserved_107>There")["input_ids"]
    user, assistant = (own.piece_to_id(f"<reserved_{n}>") for n in (106, 107))
    assert chat == [user, *own.encode("Hi"), assistant, *own.encode("There")]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.convert_tokens_to_ids("<reserved_106>") == own.piece_to_id("<reserved_106>")
    assert len(tokenizer) == own.vocab_size() and tokenizer.model_max_length == 4096


def test_begin_and_end_are_added_where_the_publisher_does(tmp_path: Path) -> None:
    origin = tmp_path / "Baichuan"
    own = published(origin)
    config = json.loads((origin / "tokenizer_config.json").read_text("utf-8"))
    config |= {"add_bos_token": True, "add_eos_token": True}
    (origin / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    assert made(tmp_path, origin)("A fox")["input_ids"] == [1, *own.encode("A fox"), 2]


def test_another_kind_of_vocabulary_is_refused(tmp_path: Path) -> None:
    published(tmp_path / "Baichuan", model_type="unigram")
    with pytest.raises(UserError, match="not of byte-pair encoding"):
        made(tmp_path, tmp_path / "Baichuan")


def test_a_llamas_vocabulary_is_taken_as_it_is(tmp_path: Path) -> None:
    """Transformers reads it without the model's code."""
    origin = tmp_path / "Llama"
    own = published(origin, add_dummy_prefix=True, normalization_rule_name="identity")
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False}
    (origin / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    (origin / "config.json").write_text('{"model_type": "llama"}', "utf-8")
    tokenizer = made(tmp_path, origin)
    assert not (tmp_path / "store" / "tokenizer.json").exists()
    for line in LINES:
        assert tokenizer(line)["input_ids"] == [1, *own.encode(line)]
