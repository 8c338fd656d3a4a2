"""The vocabulary of the first Qwen models, published for tiktoken, in Hugging Face's format."""

from __future__ import annotations

import base64
import binascii
import importlib.util
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from easyllm.data.chat.formats import ChatML
from easyllm.data.tokenizers import compare
from easyllm.data.tokenizers.select_backend import sample, vocabulary
from easyllm.data.tokenizers.special import END
from easyllm.errors import UserError
from easyllm.models.tokenizer_files import save

RANKS = 151_643
"""Tokens in ``qwen.tiktoken``; the special ones follow."""

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The published tokenizer's pattern for splitting text, which is in Unicode's normal form C."""

TURNS = ("<|im_start|>", "<|im_end|>")
SPECIAL = (END, *TURNS, *(f"<|extra_{number}|>" for number in range(205)))
"""In the order of their ids. The end of a text is ``<|endoftext|>``; ``<|im_end|>`` ends a
turn of the chat models."""


def convert(file: Path, folder: Path, documents: Iterable[str] = ()) -> None:
    """Write into ``folder`` the tokenizer of a ``qwen.tiktoken``: same ids, no extra code.

    Raises UserError for a file of another vocabulary, because its pattern and special tokens are
    not known, and where hard texts, the tokens' own texts or ``documents`` have other ids than
    tiktoken gives.
    """
    if importlib.util.find_spec("tiktoken") is None:
        raise UserError(
            f"{file} is compared with tiktoken, which is not installed: "
            "pip install 'easyllm[tiktoken]'"
        )
    from tokenizers import normalizers
    from transformers.convert_slow_tokenizer import TikTokenConverter

    tokens = ranks(file)

    class Converter(TikTokenConverter):
        @staticmethod
        def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
            return tokens

    converter: Any = Converter(str(file), PATTERN, extra_special_tokens=list(SPECIAL))
    tokenizer = converter.converted()
    tokenizer.normalizer = normalizers.NFC()
    save(
        tokenizer,
        folder,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=list(TURNS),
        chat_template=ChatML().chat_template(None),
    )
    texts = itertools.chain(sample(SPECIAL), _vocabulary(folder), documents)
    compare.check(file, folder, "tiktoken", _original(tokens), texts)


def _vocabulary(folder: Path) -> Iterator[str]:
    from easyllm.data.tokenizers.encode import load_tokenizer

    return vocabulary(load_tokenizer(folder))


def _original(tokens: dict[bytes, int]) -> compare.Rows:
    """tiktoken's ids, where the names of special tokens are words.

    The published tokenizer first applies Python's NFC, whose Unicode version depends on Python's
    version; here NFC is that of tokenizers, which orders marks up to Unicode 9.
    """
    import tiktoken
    from tokenizers import normalizers

    encoding = tiktoken.Encoding("qwen", pat_str=PATTERN, mergeable_ranks=tokens, special_tokens={})
    form = normalizers.NFC()
    return lambda texts: [encoding.encode_ordinary(form.normalize_str(text)) for text in texts]


def ranks(file: Path) -> dict[bytes, int]:
    """The tokens' bytes and ids, from lines of base64 and a number. Raises UserError."""
    found: dict[bytes, int] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            found[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise UserError(
                f"{file}, line {number}: is not a token in base64 and its rank; fetch it again"
            ) from None
    if sorted(found.values()) != list(range(RANKS)):
        raise UserError(
            f"{file} holds {len(found):,} tokens, and qwen.tiktoken has {RANKS:,}; the pattern and "
            "the special tokens of other .tiktoken files are not known: give "
            "data.tokenizer.path=<a folder with its tokenizer.json>"
        )
    return found
