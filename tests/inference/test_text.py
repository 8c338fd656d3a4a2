"""Answers as text."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from easyllm.inference.text import TextStream
from tests.inference.small import save_model

TEXTS = ["héllo 世界", "🙂🙂 ok", "tab\tand\nline", "", "日本語のテキスト", "a" * 50]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(save_model(tmp_path_factory.mktemp("model")))


class Slow:
    """A tokenizer that is not a fast one."""

    is_fast = False

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))


def stream(tokenizer: Any, ids: list[int], *stop: str) -> tuple[list[str], bool]:
    text = TextStream(tokenizer, stop)
    parts = []
    for id_ in ids:
        parts.append(text.feed(id_))
        if text.stopped:
            return parts, True
    parts.append(text.finish())
    return parts, text.stopped


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_the_parts_are_the_text(tokenizer: Any, text: str, slow: bool) -> None:
    ids = tokenizer(text)["input_ids"]
    parts, stopped = stream(Slow(tokenizer) if slow else tokenizer, ids)
    assert "".join(parts) == text and not stopped
    assert not any("\ufffd" in part for part in parts)  # bytes of half a character are held back


@pytest.mark.parametrize("slow", [False, True])
def test_special_tokens_are_left_out_and_cut_characters_shown(tokenizer: Any, slow: bool) -> None:
    ids = [*tokenizer("a世")["input_ids"][:-1], tokenizer.eos_token_id]
    parts, _ = stream(Slow(tokenizer) if slow else tokenizer, ids)
    assert "".join(parts).startswith("a\ufffd")


@pytest.mark.parametrize(
    ("stop", "left"),
    [(("cd",), "ab"), (("d", "bc"), "a"), (("xyz",), "abcabcdef"), (("abcd",), "abc"),
     (("f",), "abcabcde"), (("abcdefg",), "abcabcdef"), (("",), "abcabcdef"), (("c", "ab"), "")],
)  # fmt: skip
def test_stop_texts(tokenizer: Any, stop: tuple[str, ...], left: str) -> None:
    text = "abcabcdef"
    if stop == ("cd",):
        text, left = "abcde", "ab"
    parts, stopped = stream(tokenizer, tokenizer(text)["input_ids"], *stop)
    assert "".join(parts) == left
    assert stopped == any(one and one in text for one in stop)


def test_what_cannot_be_a_stop_text_is_not_held_back(tokenizer: Any) -> None:
    parts, _ = stream(tokenizer, tokenizer("ab<x<e<end>")["input_ids"], "<end>")
    assert parts[:7] == ["a", "b", "", "<x", "", "", "<e"]
    assert "".join(parts) == "ab<x<e"
