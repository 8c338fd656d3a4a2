"""SentencePiece models of many options, trained on the spot, and what their tests share."""

from __future__ import annotations

import json
import pydoc_data.topics
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as messages

import easyllm.models.custom  # noqa: F401
from easyllm.data.tokenizers.components import Pretrained
from tests.support import run_spec

SYMBOLS = ["<reserved_106>", "<reserved_107>", "<mask>", "ABC", "ﬁx", "é!", "x"]
TOPICS = "\n".join("".join(pydoc_data.topics.topics.values()).splitlines()[:1500])
LINES = [
    "价格是 3.14 元，今天天气很好。 全角ＡＢＣ　と　半角 abc ﬁ ½ Größe, naïve café",
    "がぎぐげご ガギグゲゴ Привет, мир! e\u0301 o\u0302\u0323 か\u3099 ｶﾞ",
]
TRAINED: dict[str, dict[str, Any]] = {
    # SentencePiece's defaults but for the size
    "default": {"model_type": "bpe"},
    "llama": {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
    },
    "symbols": {
        "model_type": "bpe",
        "byte_fallback": True,
        "remove_extra_whitespaces": False,
        "user_defined_symbols": SYMBOLS,
    },
    "squeezed": {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "user_defined_symbols": SYMBOLS,
    },
    "suffix": {"model_type": "bpe", "treat_whitespace_as_suffix": True},
    "bare": {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "byte_fallback": True,
    },
    # without repeated letters there are few divisions of equal score, see below
    "unigram": {
        "model_type": "unigram",
        "input": "single.txt",
        "user_defined_symbols": SYMBOLS[:3],
    },
    "ties": {"model_type": "unigram"},
}

Edit = Callable[[Any], None]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with nothing but a ``tokenizer.model`` of the options named; not to be changed."""
    home = tmp_path_factory.mktemp("sentencepiece")
    text = "\n".join([TOPICS, *LINES * 20])
    (home / "text.txt").write_text(text, "utf-8")
    (home / "single.txt").write_text(re.sub(r"(.)\1+", r"\1", text), "utf-8")

    def folder(name: str) -> Path:
        made = home / name
        if not made.exists():
            made.mkdir()
            settings = {"input": "text.txt", "vocab_size": 640, "hard_vocab_limit": False}
            settings |= TRAINED[name]
            settings["input"] = str(home / settings["input"])
            sentencepiece.SentencePieceTrainer.train(
                model_prefix=str(made / "tokenizer"), minloglevel=2, **settings
            )
            (made / "tokenizer.vocab").unlink()
        return made

    return folder


def copied(
    origin: Path, folder: Path, settings: dict[str, Any] | None = None, **files: Any
) -> Path:
    """The model of ``origin`` in a folder of its own, with these JSON files beside it."""
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes((origin / "tokenizer.model").read_bytes())
    if settings is not None:
        files["tokenizer_config"] = settings
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return folder


def edited(origin: Path, folder: Path, edit: Edit) -> Path:
    """A model changed by hand."""
    proto = messages.ModelProto()
    proto.ParseFromString((origin / "tokenizer.model").read_bytes())
    edit(proto)
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    return folder


def original(folder: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def made(tmp_path: Path, origin: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    Pretrained(path=str(origin)).make(run_spec(tmp_path, {}), folder)
    return folder


def odd_texts(count: int) -> Iterator[str]:
    """Random texts of letters, marks, spaces, symbols and names of tokens; always the same."""
    draw = random.Random(0)
    blocks = [
        *((0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x3040, 0x3100), (0x1100, 0x1200)),
        *((0x900, 0xA00), (0xAC00, 0xAC40), (0xFF00, 0xFFF0), (0, 0x20), (0x2000, 0x2070)),
    ]
    words = [*SYMBOLS, "<s>", "</s>", "<unk>", "<0x41>", "▁", "the", "\u3099", "\r\n", "👩‍🚀", "12"]
    for _ in range(count):
        parts = []
        for _ in range(draw.randint(1, 9)):
            kind = draw.random()
            if kind < 0.25:
                parts.append(draw.choice(words))
            elif kind < 0.4:
                parts.append(" " * draw.randint(1, 3))
            else:
                parts.append(chr(draw.randrange(*draw.choice(blocks))))
        yield "".join(parts)
