"""Selects a run's encoder: the fastest whose ids are the same as Hugging Face's."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easyllm.data.chat.templates import end_of_sequence
from easyllm.data.tokenizers.backends import FASTEST, HuggingFace, save, version
from easyllm.data.tokenizers.encode import Vocabulary, by_transformers, load_tokenizer
from easyllm.errors import UserError
from easyllm.files import atomic_dir, file_lock, read_json, stable_hash, write_json
from easyllm.spec.roles import Encoder
from easyllm.spec.schema import target_of, write

if TYPE_CHECKING:
    from easyllm.data.tokenizers.backends import Encode

SCHEMA = 2
"""Version of what ``engine.json`` holds."""

WORDS = (
    "The quick brown fox jumps over the lazy dog.",
    "don't can't I'll we've they're I'm he'd DON'T I'LL 'tis ''s x's 's",
    "ALLCAPS lowercase MixedCase camelCaseWords snake_case_words kebab-case",
    "1 12 123 1234 1234567890 3.14159 0xDEADBEEF 1,000,000 99.99% ½ Ⅷ ٣٤٥ १२३ 一二三",
    "def f(x):\n    return [i**2 for i in range(100)]  # 1+2+3==6\n\n\n\tpass\n",
    'if (a != b && c <= d) { s += "x\\n\\t"; } /* … */ https://example.com/path?q=1&x=2#frag',
    "<html><body class='x'>&nbsp;</body></html> {{ jinja }} {% if %} [INST] <<SYS>> </s> <s>",
    "中文分词测试，標點符號。全角ＡＢＣ１２３！ 久久夜色AV中文ENGLISH混排",
    "日本語のトークナイザー、カタカナ・ひらがな。ﾊﾝｶｸ ガギグゲゴ ｶﾞｷﾞ",
    "한국어 토크나이저 한글 ㄱㄴㄷ 각",
    "Русский текст, Ελληνικά, Україна, Ђорђе; naïve café résumé Zürich Größe straße İıŞş",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 "
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd \u202bright\u202c to left\u200f",
    "हिन्दी क्षत्रिय தமிழ் ภาษาไทย ພາສາລາວ ខ្មែរ မြန်မာ አማርኛ ქართული հայերեն བོད་",
    "e\u0301 a\u0300\u0301 o\u0302\u0323 \u0061\u031b\u007a \u1e9b\u0323 \u212b \u2126 ﬁ ﬀ",
    "👋 👋🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇯🇵🇧🇷 ❤️ ☺︎ 1️⃣ 🧑🏿‍🚀🚀🔥",
    "a\u200bb\u200cc\u200dd\ufeffe\u2060f\u00adg \ufffd \uffff \U0010ffff \ue000 \U000e0041",
    # marks out of order and letters that came with Unicode 10 to 17, and what follows letters
    "\u0345\u0898 \u08ca\u0619 e\u0302\u1aca \u1df6\u0597 \u0eba\u0334 \U0001e2ae\U0001134d "
    "\u1ad7's \ua7da's \U00018dd0's \U00010efd\u05bb \U0001e6e3's \U00016d63\U00016d67",
    "≈ç√∫˜µ≤ ∀x∈ℝ: ⌈x⌉ = −⌊−x⌋ 𝔘𝔫𝔦 𝟙𝟚 ①②③ ™©® „Anführung“ «guillemets» – — …",
)
"""A line for each kind of text that engines have been seen to split differently."""

SPACES = (
    " ", "  ", "   ", "\t", "\t\t", " \t ", "\n", "\n\n", "\n \n", "\r", "\r\n", "\r\n\r\n",
    "\x0b", "\x0c", "\x85", "\xa0", "\xa0\xa0 ", "\u1680", "\u2000\u2009", "\u2028", "\u2029",
    "\u202f", "\u205f", "\u3000", "\u180e", "\x1c\x1d\x1e\x1f", " " * 16, " " * 100, "\n" * 20,
    "\x00", "\x01\x02", "\x1b[0m", "\x7f",
)  # fmt: skip
"""Whitespace and control characters, which are put before, between and behind words."""

OWN = 1 << 16
"""Bytes of each source's first documents that are compared."""


def sample(names: Sequence[str]) -> list[str]:
    """Texts that are hard to encode correctly; ``names`` of added tokens are encoded as words.

    A name is also decomposed: a normalised token is found in such a text, an exact one is not.
    """
    spaced = [
        text
        for gap in SPACES
        for text in (gap, f"{gap}word", f"word{gap}", f"word{gap}word{gap}1{gap}，{gap}!")
    ]
    named = [
        text
        for name in names
        for text in (
            name,
            f"word{name}word",
            f"{name}word",
            f"word{name}",
            f" {name} \n{name}{name}",
            f"_{name}1{name}é",
            name[:-1],
            unicodedata.normalize("NFD", name),
        )
    ]
    long = ["a" * 5000, "é" * 3000, "语" * 3000, "🙂" * 500, "ab" * 3000, "7" * 999, "!?" * 500]
    return ["", *WORDS, *spaced, *named, *long, "\n".join(WORDS), " ".join(SPACES)]


def vocabulary(tokenizer: Any) -> Iterator[str]:
    """Every token that is a text by itself, and texts of a hundred such tokens."""
    ids = [[number] for number in range(len(tokenizer))]
    decoded = tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=False)
    texts = [text for text in decoded if text and "\ufffd" not in text]
    yield from texts
    for first in range(0, len(texts), 100):
        yield "".join(texts[first : first + 100])


def difference(
    reference: Encode,
    encode: Encode,
    texts: list[str],
    names: tuple[str, str] = ("it", "Hugging Face's tokenizers"),
) -> str | None:
    """Describes where ``encode`` gives other ids than ``reference``; None where nowhere.

    ``names`` are what the two are called: ``encode``, and ``reference``.
    """
    import numpy as np

    (right, places), (found, starts) = reference(texts), encode(texts)
    if np.array_equal(places, starts) and np.array_equal(right, found):
        return None
    for number, text in enumerate(texts):
        a = right[places[number] : places[number + 1]].tolist()
        b = found[starts[number] : starts[number + 1]].tolist()
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
            at = max(0, at - 2)
            return (
                f"{names[0]} encodes {_short(text)} as {_ids(b, at)}, and {names[1]} "
                f"{'encode' if names[1].endswith('s') else 'encodes'} it as {_ids(a, at)}"
            )
    return None


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _ids(ids: list[int], first: int) -> str:
    some = ", ".join(map(str, ids[first : first + 8]))
    before, behind = "… " if first else "", " …" if len(ids) > first + 8 else ""
    return f"[{before}{some}{behind}]"


@dataclass(frozen=True)
class Engine:
    """A tokenizer that is ready to encode, and the facts about it that a store needs."""

    folder: Path
    """Holds what ``encoder`` loads."""
    encoder: Encoder | None
    """None where the tokenizer has no fast version: transformers' Python code is used."""
    rejected: dict[str, str]
    """Engines that would have been taken, and why they were not."""
    named: bool
    """Whether the spec names the engine."""
    vocab_size: int
    eos_id: int
    pad_id: int

    @property
    def label(self) -> str:
        return self.encoder.label if self.encoder else f"transformers {version('transformers')}"

    @property
    def is_reference(self) -> bool:
        return self.encoder is None or self.encoder == HuggingFace()

    def refused(self, why: str) -> Engine:
        """Hugging Face's engine instead. Raises UserError where the spec names this one."""
        if self.named:
            assert self.encoder
            raise _inexact(self.encoder, why)
        rejected = {**self.rejected, self.label: why}
        return dataclasses.replace(self, encoder=HuggingFace(), rejected=rejected)


def choose(named: Encoder | None, tokenizer: Path, identity: str, cache: Path) -> Engine:
    """The engine for the tokenizer in a folder, whose content ``identity`` identifies.

    It is made ready and compared once, in a folder of ``cache`` that later runs use again.
    Raises UserError where ``named`` cannot take the tokenizer or gives other ids.
    """
    candidates = FASTEST if named is None else (named,)
    made_by = [SCHEMA, version("transformers"), version("tokenizers"), WORDS, SPACES]
    tried = [(target_of(type(each)), _label(each), write(each)) for each in candidates]
    place = cache / "encoders" / stable_hash([identity, made_by, tried])
    if not (place / "engine.json").exists():
        with file_lock(cache / "encoders" / f".{place.name}.lock"):
            if not (place / "engine.json").exists():
                with atomic_dir(place) as temporary:
                    select(tokenizer, temporary, candidates, named)
    facts = read_json(place / "engine.json")
    taken = {target_of(type(each)): each for each in (*candidates, HuggingFace())}
    return Engine(place, taken.get(facts.pop("encoder")), named=named is not None, **facts)


def select(
    folder: Path, temporary: Path, candidates: Sequence[Encoder], named: Encoder | None
) -> None:
    """Write the engine for a tokenizer's folder to ``temporary``: the first candidate that encodes
    as Hugging Face's does. Raises UserError where ``named`` does not."""
    tokenizer = load_tokenizer(folder)
    eos = end_of_sequence(tokenizer)
    encoder: Encoder | None = None
    rejected: dict[str, str] = {}
    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        save(backend, temporary)
        encoder = HuggingFace()
        reference: Encode | None = None
        for candidate in candidates:
            if candidate == HuggingFace():
                break
            why = _missing(candidate)
            if why is None and reference is None:
                reference = encoder.load(temporary)
                texts = [*sample(list(tokenizer.get_added_vocab())), *vocabulary(tokenizer)]
            if why is None and reference is not None:
                why = _compared(candidate, temporary, reference, texts)
            if why is None:
                encoder = candidate
                break
            if named:
                raise _inexact(candidate, why)
            rejected[_label(candidate)] = why
    elif named and named != HuggingFace():
        raise _inexact(named, "the tokenizer has no tokenizer.json")
    facts = {
        "encoder": encoder and target_of(type(encoder)),
        "rejected": rejected,
        "vocab_size": len(tokenizer),
        "eos_id": eos,
        "pad_id": eos if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id),
    }
    write_json(temporary / "engine.json", facts)


def _compared(candidate: Encoder, folder: Path, reference: Encode, texts: list[str]) -> str | None:
    try:
        candidate.prepare(folder)
        return difference(reference, candidate.load(folder), texts)
    except UserError as error:
        return str(error)
    except BaseException as error:  # a panic of Rust code is not an Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        return f"it fails with {type(error).__name__}: {error}"


def compared(engine: Engine, encode: Encode, documents: Iterable[str]) -> str | None:
    """Describes where an engine's ids of a source's first documents differ from Hugging Face's."""
    texts: list[str] = []
    size = 0
    for text in documents:
        texts.append(text[: OWN - size])
        size += len(texts[-1])
        if size >= OWN:
            break
    return difference(HuggingFace().load(engine.folder), encode, texts)


def load(engine: Engine, tokenizer: Path) -> Vocabulary:
    """The engine in this process, with the tokenizer's folder, which conversations need."""
    encode = None if engine.encoder is None else engine.encoder.load(engine.folder)
    if encode is None:
        encode = by_transformers(load_tokenizer(tokenizer))
    return Vocabulary(encode, engine.eos_id, tokenizer)


def _missing(encoder: Encoder) -> str | None:
    for module, extra in encoder.requires.items():
        if find_spec(module) is None:
            return f"the package is not installed: pip install 'easyllm[{extra}]'"
    return None


def _label(encoder: Encoder) -> str:
    missing = any(find_spec(module) is None for module in encoder.requires)
    return type(encoder).__name__ if missing else encoder.label


def _inexact(encoder: Encoder, why: str) -> UserError:
    return UserError(
        f"data.encoder={target_of(type(encoder))} cannot be used with this tokenizer: {why}; "
        "give data.encoder=null, which takes the fastest that is exact"
    )
