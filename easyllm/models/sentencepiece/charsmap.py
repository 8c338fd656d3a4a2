"""SentencePiece's normalisation rules as normalizers of the package tokenizers.

SentencePiece replaces, from left to right, the longest character sequence that has a rule.
``normalizers.Precompiled`` (tokenizers 0.23) uses grapheme clusters instead: for a cluster of less
than six bytes it takes the *shortest* rule that matches its beginning and drops the rest, and for a
longer one it takes the rules of single characters only. So ``o``, U+0302, U+0323 loses its dot, and
``か`` with U+3099 is not composed. Here separators are put between SentencePiece's units and
between the characters within them, so that each character is replaced separately. NFC then
composes within the units, and the separators are removed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

BETWEEN, WITHIN = "\ufdd0", "\ufdd1"
"""Noncharacters, which Unicode reserves for use within programs, so that texts do not hold them.
They are put between two units, and between two characters of one unit."""

PLACEHOLDERS = tuple(
    map(chr, [*range(0xFDD6, 0xFDF0), 0xFFFE, *(p << 16 | 0xFFFE for p in range(1, 17)),
              *(p << 16 | 0xFFFF for p in range(1, 16))])
)  # fmt: skip
"""More noncharacters. Each one stands for a replacement that Precompiled and NFC do not give: those
of a newer Unicode than NFC's here, and those of case folding."""

START = "\ufdd2"
"""The mark at the beginning of a text while it is normalised."""

BASE = "\ue000"
"""A character that has no rule and composes with no other."""

SPARED = ((0x3400, 0x9FFF), (0xAC00, 0xD7A3), (0xD800, 0xF8FF), (0x20000, 0xDFFFF))
"""Ideographs, Hangul syllables, surrogates and private use: none of them joins the character before
it."""


def rules(charsmap: bytes) -> dict[str, str]:
    """The rules of a ``precompiled_charsmap``: texts and their replacements.

    The charsmap is the length of a double-array trie in the form of Darts-clone, the trie, and
    the replacements, each ended by a zero byte. Raises ValueError for anything else.
    """
    import numpy as np

    (size,) = struct.unpack_from("<I", charsmap)
    if size % 4 or size + 4 > len(charsmap):
        raise ValueError("its normalisation rules are damaged")
    units = np.frombuffer(charsmap, "<u4", size // 4, 4).astype(np.int64)
    ends = charsmap[size + 4 :]
    places = np.arange(len(units)) ^ ((units >> 10) << ((units & 0x200) >> 6))
    # a unit whose label is a byte is at the offset of its parent's children, moved by the label
    labels = units & 0x800000FF
    inner = np.flatnonzero((labels > 0) & (labels < 256))
    inner = inner[np.argsort(inner ^ labels[inner], kind="stable")]
    parents = inner ^ labels[inner]
    found: dict[str, str] = {}
    nodes, keys = np.zeros(1, np.int64), [b""]
    # the root's offset is not moved by its own position
    begins = (units[:1] >> 10) << ((units[:1] & 0x200) >> 6)
    while len(nodes):
        first = np.searchsorted(parents, begins, "left")
        last = np.searchsorted(parents, begins, "right")
        nodes = np.concatenate([inner[a:b] for a, b in zip(first, last, strict=True)] or [nodes])
        counts = (last - first).tolist()
        before = [key for key, count in zip(keys, counts, strict=True) for _ in range(count)]
        letters = labels[nodes].tolist()
        keys = [key + bytes([letter]) for key, letter in zip(before, letters, strict=True)]
        begins = places[nodes]
        for place in np.flatnonzero((units[nodes] >> 8) & 1).tolist():
            at = int(units[begins[place]]) & 0x7FFFFFFF
            found[keys[place].decode()] = ends[at : ends.index(b"\0", at)].decode()
    return found


class Rules:
    """The rules of a ``precompiled_charsmap``, ready for the package tokenizers.

    Raises ValueError where that package's normalizers cannot do the same.
    """

    def __init__(self, charsmap: bytes):
        from tokenizers import normalizers as n

        self.found = rules(charsmap)
        self.sequences = [key for key in self.found if len(key) > 1]
        self.pattern = alternatives(self.sequences)
        precompiled = n.Precompiled(charsmap)
        joined = _joined(self.found, precompiled)
        self.joined = _letters(joined)
        between = n.Replace(BETWEEN, "")
        self.steps: list[Any] = [precompiled, between]
        if self.sequences:
            within = n.Replace(_regex(f"(?<!{BETWEEN})(?=[{self.joined}])"), WITHIN)
            self.steps = [within, precompiled, n.Replace(WITHIN, ""), n.NFC(), between]
        wrong = self._wrong(self.found)
        if wrong and len({self.found[key] for key in wrong}) <= len(PLACEHOLDERS):
            self._give(wrong, joined)
            wrong = self._wrong(wrong)
        if wrong:
            raise ValueError(
                f"its normalisation rules make {self.found[wrong[0]]!r} of {wrong[0]!r}, which "
                "normalizers of the package tokenizers do not"
            )

    def normalizers(self, symbols: Iterable[str] = ()) -> list[Any]:
        """Normalizers that replace as SentencePiece does, in a text that begins with ``START``.
        They keep the symbols as they are, if no symbol has characters with rules.

        Precompiled panics where the first character of a text is removed, or where only a separator
        is before it.
        """
        from tokenizers import normalizers as n

        ends = _ends(self.pattern, self.joined, alternatives(symbols))
        return [n.Replace(_regex(ends), BETWEEN), *self.steps]

    def _wrong(self, keys: Iterable[str]) -> list[str]:
        """The keys for which the steps do not give the rules' replacement."""
        from tokenizers import normalizers as n

        whole = n.Sequence([n.Prepend(START), *self.normalizers(), n.Replace(START, "")])
        return [key for key in keys if whole.normalize_str(key) != self.found[key]]

    def _give(self, keys: list[str], joined: set[str]) -> None:
        """Make separate steps for some keys, one for each replacement."""
        from tokenizers import normalizers as n

        early: list[Any] = []
        late: list[Any] = []
        plain: list[str] = []
        if len(keys) <= len(PLACEHOLDERS):
            # a plain text is found faster, but it must not be found within another sequence
            others = "\0".join(key for key in self.sequences if key not in keys)
            plain = [
                key
                for key in sorted(keys, key=len, reverse=True)
                if not set(self.found[key]) & self.found.keys() and key not in others
            ]
            early += [n.Replace(key, self.found[key]) for key in plain]
        made: dict[str, list[str]] = {}
        for key in keys:
            if key in plain:
                continue
            made.setdefault(self.found[key], []).append(key)
        for (to, group), held in zip(made.items(), PLACEHOLDERS, strict=False):
            # characters of the replacement have rules themselves, so this step is last
            early.append(n.Replace(_regex(_units(group, joined)), held))
            late.append(n.Replace(held, to))
        self.steps = [*early, *self.steps, *late]


def _joined(found: Mapping[str, str], precompiled: Any) -> set[str]:
    """Characters that a cluster or NFC joins with the one before."""
    from tokenizers import normalizers as n

    later = {letter for key in found for letter in key[1:]}
    joined = later | ({"\n"} if "\r" in found else set())
    singles = [key for key in found if len(key) == 1 and found[key] and key.isprintable()]
    probes = [min((k for k in singles if len(k.encode()) == s), default="") for s in (1, 2, 3)]
    nfc = n.NFC()
    for code in _codes():
        letter = chr(code)
        alone = precompiled.normalize_str(letter)
        if (
            # a mark that is sorted before another
            nfc.normalize_str(f"{BASE}\u0345{letter}") != f"{BASE}\u0345{nfc.normalize_str(letter)}"
            or (alone and alone[0] in later)
            or any(
                probe and precompiled.normalize_str(probe + letter) != found[probe] + alone
                for probe in probes
            )
        ):
            joined.add(letter)
    return joined


def _codes() -> Iterable[int]:
    last = 0x80
    for first, end in SPARED:
        yield from range(last, first)
        last = end + 1
    yield from range(0xE0000, 0xE1000)


def _ends(sequences: str, letters: str, symbols: str) -> str:
    """Matches, with no width, where a unit ends and a character follows that would join it.

    A unit is a symbol, the longest sequence with a rule, or one character. A search begins
    where the last one ended, or before a character that is never within a unit. ``sequences``
    and ``symbols`` are patterns, ``letters`` the inside of a character class.
    """
    unit = f"(?=.[{letters}])(?>{'|'.join(filter(None, (sequences, '.')))})"
    if symbols:
        unit = f"(?:(?>{symbols})|{unit})"
    return rf"(?m:(?:\G|(?=[^{letters}])){unit}\K(?=[{letters}]))"


def _units(sequences: Iterable[str], joined: set[str]) -> str:
    """A pattern of whole units that are one of the sequences."""
    inner = [word for word in sequences if word[0] in joined]
    parts = [alternatives(word for word in sequences if word[0] not in joined)]
    parts += [f"(?<={BETWEEN}){alternatives(inner)}"] if inner else []
    return f"(?:{'|'.join(filter(None, parts))})(?![{_letters(joined)}])"


def alternatives(words: Iterable[str]) -> str:
    """A pattern of any of the words, the longest match first, without repeating common parts."""
    tree: dict[str, Any] = {}
    for word in words:
        node = tree
        for letter in word:
            node = node.setdefault(letter, {})
        node[""] = {}
    return _pattern(tree)


def _pattern(tree: Mapping[str, Any]) -> str:
    behind: dict[str, set[str]] = {}
    for letter, node in tree.items():
        if letter:
            behind.setdefault(_pattern(node), set()).add(letter)
    parts = [f"{_one_of(letters)}{rest}" for rest, letters in sorted(behind.items())]
    if not parts:
        return ""
    # a word that ends here may also continue, which is tried first
    ended = "?" if "" in tree else ""
    return f"(?:{'|'.join(parts)}){ended}"


def _one_of(letters: set[str]) -> str:
    return f"[{_letters(letters)}]"


def _letters(letters: Iterable[str]) -> str:
    """The inside of a character class."""
    ranges: list[list[int]] = []
    for code in sorted(map(ord, letters)):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"\\x{{{a:x}}}" + (f"-\\x{{{b:x}}}" if b > a else "") for a, b in ranges)


def escaped(text: str) -> str:
    """A pattern that matches exactly this text."""
    return "".join(f"\\x{{{ord(letter):x}}}" for letter in text)


def _regex(pattern: str) -> Any:
    from tokenizers import Regex

    return Regex(pattern)
