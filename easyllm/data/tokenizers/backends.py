"""Encoders: engines that turn texts into token ids, all into the same ids.

To add your own, subclass ``easyllm.spec.roles.Encoder`` and name the class by
``data.encoder._target_``; ``easyllm.data.tokenizers.select_backend`` compares its ids with those
of Hugging Face's tokenizers.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import io
import json
import os
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easyllm.errors import UserError
from easyllm.spec.roles import Encoder

if TYPE_CHECKING:
    from easyllm.data.store.shards import Int32, Int64

    Encode = Callable[[list[str]], tuple[Int32, Int64]]

TOKENIZER = "tokenizer.json"

REMEMBERED, WATCHED = 1 << 30, 1 << 25
"""Bytes of memory that an engine's words may take; characters after which that is checked."""

NEWER = (
    # combining marks that came with Unicode 10 and later: NFC of tokenizers 0.23 has Unicode 9's
    # order of marks, that of gigatoken 0.10 and quicktok 0.4 a newer one
    (0x07FD, 0x07FD), (0x0898, 0x089F), (0x08CA, 0x08D3), (0x09FE, 0x09FE), (0x0C3C, 0x0C3C),
    (0x0D3B, 0x0D3C), (0x0EBA, 0x0EBA), (0x1715, 0x1715), (0x1ABF, 0x1AFF), (0x1DF6, 0x1DFA),
    (0xA82C, 0xA82C),
    # beyond the Basic Multilingual Plane: all except emoji, mathematical letters and ideographs
    (0x10000, 0x1D3FF), (0x1D800, 0x1EFFF), (0x1FB00, 0x1FFFF), (0x2A6DE, 0x2A6FF),
    (0x2B739, 0x2B73F), (0x2EBE1, 0x2F7FF), (0x3134B, 0x3FFFF),
)  # fmt: skip
"""First and last of the characters for which engines use different versions of Unicode;
``_newer`` adds those that this Python's version does not know."""

LONG = 2000
"""Average characters of a text from which a call for each text costs nothing."""


@functools.cache
def version(package: str) -> str:
    """An installed package's version; looking it up reads the whole description."""
    return importlib.metadata.version(package)


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Encoder):
    """Hugging Face's tokenizers: takes any ``tokenizer.json``; others are compared with it."""

    @property
    def label(self) -> str:
        return f"tokenizers {version('tokenizers')}"

    def load(self, folder: Path) -> Encode:
        import numpy as np
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        tokenizer.encode_special_tokens = True

        def encode(texts: list[str]) -> tuple[Int32, Int64]:
            rows = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            return joined([np.fromiter(row.ids, np.int32, len(row)) for row in rows])

        return encode


@dataclass(frozen=True, kw_only=True)
class Gigatoken(Encoder):
    """gigatoken: byte-level BPE with the usual patterns, and SentencePiece's BPE."""

    requires = {"gigatoken": "fast-tokenizers"}  # noqa: RUF012  (a constant of the class)

    @property
    def label(self) -> str:
        return f"gigatoken {version('gigatoken')}"

    def prepare(self, folder: Path) -> None:
        content = json.loads((folder / TOKENIZER).read_bytes())
        for token in content["added_tokens"]:
            if token["single_word"] and not token["special"]:
                raise UserError(
                    f"gigatoken finds {token['content']!r} within words too, and single_word=true "
                    "asks for whole words"
                )
        # gigatoken would find them in texts, where they are words
        content["added_tokens"] = [t for t in content["added_tokens"] if not t["special"]]
        merges = content["model"].get("merges", [])
        if merges and isinstance(merges[0], str):  # it loads pairs faster
            content["model"]["merges"] = [merge.split(" ") for merge in merges]
        (folder / "gigatoken.json").write_text(_compact(content), "utf-8")

    def load(self, folder: Path) -> Encode:
        import numpy as np

        tokenizer = load_gigatoken(folder)
        text, begun = 0, resident_bytes()

        @_newer_characters_by_hugging_face(folder)
        def encode(texts: list[str]) -> tuple[Int32, Int64]:
            nonlocal tokenizer, text, begun
            size = sum(map(len, texts))
            text += size
            if text >= WATCHED:
                # it keeps every word that it has met for its lifetime
                if resident_bytes() - begun > REMEMBERED:
                    del tokenizer
                    tokenizer = load_gigatoken(folder)
                    begun = min(begun, resident_bytes())
                text = 0
            if size >= LONG * len(texts):
                # the result of a batch needs the package awkward, whose import takes 0.2 s
                return joined([tokenizer.encode(text) for text in texts])
            rows = tokenizer.encode_batch(texts, parallel=False).layout
            offsets = rows.offsets.data.astype(np.int64)
            return rows.content.data[offsets[0] : offsets[-1]].view(np.int32), offsets - offsets[0]

        return encode


@dataclass(frozen=True, kw_only=True)
class QuickTok(Encoder):
    """quicktok: byte-level BPE with the patterns of GPT-4, GPT-4o, Llama 3, Qwen and Mistral."""

    requires = {"quicktok": "fast-tokenizers"}  # noqa: RUF012  (a constant of the class)

    @property
    def label(self) -> str:
        return f"quicktok {version('quicktok-v1')}"

    def prepare(self, folder: Path) -> None:
        from quicktok import import_tokenizer

        place = folder / "quicktok"
        place.mkdir(exist_ok=True)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                import_tokenizer(str(folder / TOKENIZER), "tokenizer", str(place))
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(f"quicktok does not take this tokenizer: {_said(error)}") from None

    def load(self, folder: Path) -> Encode:
        import numpy as np
        from quicktok import Tokenizer

        tokenizer = Tokenizer("tokenizer", str(folder / "quicktok"))

        @_newer_characters_by_hugging_face(folder)
        def encode(texts: list[str]) -> tuple[Int32, Int64]:
            ids, offsets = tokenizer.encode_batch(texts, 1)
            return ids.view(np.int32), offsets.astype(np.int64, copy=False)

        return encode


def save(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer of the package tokenizers so that it loads a third faster.

    Its words are sorted, and a merge is one text, where it can be, rather than a pair.
    """
    content = json.loads(tokenizer.to_str())
    words = content["model"].get("vocab")
    if isinstance(words, dict):  # tokenizers reads it into a sorted tree
        content["model"]["vocab"] = dict(sorted(words.items(), key=lambda item: item[0].encode()))
    merges = content["model"].get("merges", [])
    # a merge that begins with #version is read as a comment
    if not any(" " in a or " " in b or a.startswith("#version") for a, b in merges):
        content["model"]["merges"] = [f"{a} {b}" for a, b in merges]
    (folder / TOKENIZER).write_text(_compact(content), "utf-8")


def _compact(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


FASTEST = (Gigatoken(), QuickTok())
"""Tried in this order where the spec names no engine."""


def _newer_characters_by_hugging_face(folder: Path) -> Callable[[Encode], Encode]:
    """Give texts with characters of a newer Unicode to Hugging Face's tokenizers.

    Engines use different versions of Unicode, which differ in which of these characters are
    letters or marks and in the order of marks.
    """

    def with_newer(fast: Encode) -> Encode:
        reference: Encode | None = None

        def encode(texts: list[str]) -> tuple[Int32, Int64]:
            nonlocal reference
            if not _has_newer("".join(texts)):
                return fast(texts)
            newer = {place for place, text in enumerate(texts) if _has_newer(text)}
            if reference is None:
                reference = HuggingFace().load(folder)
            sides = [
                (fast, [place for place in range(len(texts)) if place not in newer]),
                (reference, sorted(newer)),
            ]
            rows: dict[int, Any] = {}
            for engine, places in sides:
                ids, offsets = engine([texts[place] for place in places])
                for number, place in enumerate(places):
                    rows[place] = ids[offsets[number] : offsets[number + 1]]
            return joined([rows[place] for place in range(len(texts))])

        return encode

    return with_newer


def _has_newer(text: str) -> bool:
    if text.isascii():
        return False
    import numpy as np

    first, newer = _newer()
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    # a regular expression with so many characters takes twice as long
    return bool(newer.take(codes[codes >= first]).any())


@functools.cache
def _newer() -> tuple[int, Any]:
    """The first code point that counts as newer, and for each code point whether it does."""
    import numpy as np

    newer = np.zeros(sys.maxunicode + 1, np.bool_)
    newer[:0x10000] = [unicodedata.category(chr(code)) == "Cn" for code in range(0x10000)]
    for begin, end in NEWER:
        newer[begin : end + 1] = True
    return int(np.flatnonzero(newer)[0]), newer


def load_gigatoken(folder: Path) -> Any:
    from gigatoken import Tokenizer

    try:
        return Tokenizer.from_json((folder / "gigatoken.json").read_bytes())
    except (ValueError, RuntimeError, TypeError, NotImplementedError) as error:
        raise UserError(f"gigatoken does not take this tokenizer: {_said(error)}") from None


def resident_bytes() -> int:
    """Bytes of memory that this process holds; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def joined(rows: list[Any]) -> tuple[Int32, Int64]:
    """Rows of ids end to end, and their offsets."""
    import numpy as np

    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    ids = np.empty(offsets[-1], np.int32)
    np.concatenate(rows or [ids], out=ids, casting="unsafe")
    return ids, offsets


def _said(error: Exception) -> str:
    """The first line of a package's error message."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].removeprefix("REFUSED: ")[:200].rstrip(os.linesep)
