"""How text is split before byte-pair encoding, for every name that ``tokenizer.ggml.pre`` can have.

A GGUF file holds tokens and merges, but only this name for the rest of its tokenizer. The names are
those that llama.cpp reads (``src/llama-vocab.cpp``). The rules are those of the published
tokenizers with these names. llama.cpp has some of their expressions in a form that its own engine
can run, which splits capitals beyond ASCII and combining marks differently, and it has no Unicode
normalisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

DIGIT = r"\p{N}"
"""Splits each digit separately."""
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's rule for words."""

_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LINES = r"\s*[\r\n]+"
_SPACES = r"\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_HALVES = "".join(rf"\s{{{2**power}}}(?!\S)|" for power in range(9, 1, -1))
_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_ASCII = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
_SCRIPTS = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_SENTENCE = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_LETTERS = (
    "A-Za-z"
    "\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5"
    "\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3"
    "\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115"
    "\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
"""The letters in the rules of DeepSeek's first models: those of scripts with upper and lower
case."""
_ASIAN = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
    "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)


def _capitals(digits: str, short: str = "", but: str = "", before: str = "") -> str:
    """GPT-4o's rule for words: a capital after a small letter begins another word."""
    upper, lower = (f"{kind[:-1]}{but}]" for kind in (_UPPER, _LOWER))
    first = r"[^\r\n\p{L}\p{N}]?"
    words = f"{first}{upper}*{lower}+{short}|{first}{upper}+{lower}*{short}"
    signs = r" ?[^\s\p{L}\p{N}]+[\r\n]*" if but else r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
    return f"{before}{words}|{digits}|{signs}|{_LINES}|{_SPACES}"


def _tiktoken(digits: str) -> str:
    """The rule for words of OpenAI's cl100k, with digits by ones or by threes."""
    return f"{_SHORT}|{_WORD}|{digits}|{_SIGNS}|{_LINES}|{_SPACES}"


def _deepseek(spaces: str) -> str:
    return rf"{_ASCII}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+{spaces}"


THREES = r"\p{N}{1,3}"


@dataclass(frozen=True)
class Rule:
    """The rule behind the name of a pre-tokenizer."""

    splits: tuple[str, ...]
    """Regular expressions in Oniguruma's dialect. Each one splits the parts left by those before it
    into its matches and the text between them."""
    nfc: bool = False
    """Whether text is first normalised to Unicode's form C."""
    whole: bool = False
    """Whether a word that is in the vocabulary becomes that token without merges."""
    bos: bool = False
    """Whether texts begin with the begin-of-sequence token if the file does not say so."""
    characters: bool = False
    """Whether tokens are written in characters, ``▁`` for a space and bytes as ``<0x0A>``, instead
    of GPT-2's alphabet of bytes."""
    lstrip: tuple[str, ...] = ()
    """Special tokens that absorb the whitespace before them."""


_LLAMA3 = Rule((_tiktoken(THREES),), whole=True, bos=True)
_QWEN2 = Rule((_tiktoken(DIGIT),), nfc=True)
_GPT4O = Rule((_capitals(THREES, _SHORT + "?"),))
_STARCODER = Rule((DIGIT, GPT2))
_WORDS = Rule((GPT2,))
_DEEPSEEK3 = Rule((THREES, _KANA, _deepseek(rf"[\r\n]*|{_LINES}|{_SPACES}")))
_BAILING = Rule(
    (
        rf"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{{L}}\p{{N}}]?+\p{{L}}+|{DIGIT}"
        rf"| ?[^\s\p{{L}}\p{{N}}]++[\r\n]*|\s*[\r\n]|{_SPACES}",
    )
)
_PIECES = Rule((r"[^\n]+|\n+",), characters=True)

RULES = MappingProxyType(
    {
        "default": Rule((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
        **dict.fromkeys(
            (
                "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0",
                "lfm2", "jina-v5-nano",
            ),
            _LLAMA3,
        ),
        **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), Rule((_tiktoken(THREES),))),
        **dict.fromkeys(("glm4", "glm5"), Rule((_tiktoken(THREES),), whole=True)),
        "minicpm5": Rule((THREES, _tiktoken(r"\p{N}+")), whole=True),
        "jais-2": Rule(
            (
                f"{_SHORT}|{_WORD}|{THREES}|{_SIGNS}|{_LINES}|{_HALVES}"
                r"\s{1,2}(?!\S)|\s{1}",
            )
        ),
        **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"), _QWEN2),
        "stablelm2": _QWEN2,
        **dict.fromkeys(("hunyuan", "solar-open", "grok-2"), Rule((_tiktoken(DIGIT),))),
        "qwen35": Rule(
            (
                rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|{DIGIT}"
                rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINES}|{_SPACES}",
            ),
            nfc=True,
        ),
        "ufakzeka": Rule((f"{_WORD}|{DIGIT}|{_SIGNS}|{_LINES}|{_SPACES}",)),
        "laguna": Rule((r"[^\n]+|\n+", _tiktoken(DIGIT))),
        "seed-coder": Rule(
            (rf"{_SHORT}|{_WORD}|{DIGIT}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINES}|{_SPACES}",)
        ),
        "exaone-moe": Rule(
            (
                rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|{DIGIT}"
                rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{_SPACES}",
            )
        ),
        **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _BAILING),
        **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _GPT4O),
        "granite-embed-multi-97m": Rule(_GPT4O.splits, whole=True),
        **dict.fromkeys(
            ("tiny_aya", "cohere2moe"),
            Rule((r"\d{1,3}(?=(?:\d{3})*\b)", *_GPT4O.splits)),
        ),
        "tekken": Rule((_capitals(DIGIT),), whole=True, bos=True),
        "kimi-k2": Rule(
            (_capitals(THREES, _SHORT + "?", r"&&[^\p{Han}]", before=r"\p{Han}+|"),)
        ),
        "youtu": Rule(
            (
                "[\uac00-\ud7a3\u3131-\u318e]+"
                "|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
                f"|[\u3105-\u312f]+|{_KANA}",
                _capitals(DIGIT, _SHORT + "?"),
            ),
            whole=True,
        ),
        **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _DEEPSEEK3),
        "spark2_5": Rule((THREES, _KANA, _deepseek(rf"|[\r\n]|{_SPACES}"), DIGIT)),
        "afmoe": Rule(
            (
                # digits in groups of three, counted from the end of the number
                r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
                _ASIAN,
                _deepseek(rf"[\r\n]*|{_LINES}|{_SPACES}"),
            )
        ),
        "superbpe": Rule((r"\p{N}+", r"\d{1,3}(?=(?:\d{3})*(?!\d))")),
        "deepseek-llm": Rule(
            (
                r"[\r\n]",
                rf"\s?[{_LETTERS}]+",
                "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
                r"\s+$",
                _SCRIPTS,
                DIGIT,
            )
        ),
        "deepseek-coder": Rule(
            (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _SCRIPTS, DIGIT)
        ),
        "falcon": Rule((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")),
        **dict.fromkeys(
            (
                "starcoder", "refact", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2",
            ),
            _STARCODER,
        ),
        "command-r": Rule(_STARCODER.splits, nfc=True),
        **dict.fromkeys(
            (
                "gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "a.x-4.0", "mellum", "jais",
                "trillion", "granite-docling", "exaone4", "jina-v1-en", "roberta-bpe",
            ),
            _WORDS,
        ),
        **dict.fromkeys(
            ("jina-v2-es", "jina-v2-de", "jina-v2-code"), Rule((GPT2,), lstrip=("<mask>",))
        ),
        "modern-bert": Rule((GPT2,), lstrip=("[MASK]",)),
        **dict.fromkeys(("mpt", "olmo"), Rule((GPT2,), nfc=True)),
        **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), Rule((_SENTENCE,))),
        "viking": Rule((_SENTENCE, DIGIT)),
        "chameleon": Rule(
            (
                "<sentinel:[0-9]+>",
                "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
                r"([\t\n]|    |  )",
                DIGIT,
                r"[\p{P}!-/:-@\[-`{-~]",
                GPT2,
            ),
            bos=True,
        ),
        "gemma4": Rule(_PIECES.splits, characters=True, bos=True),
        "granite-embed-multi-311m": Rule(_PIECES.splits, characters=True, bos=True),
        "sarvam-moe": _PIECES,
    }
)  # fmt: skip
"""The rule of each name."""
