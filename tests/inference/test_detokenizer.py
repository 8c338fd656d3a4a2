"""Answers as text."""

from __future__ import annotations

import random
from typing import Any

import pytest
from transformers import AutoTokenizer

from easyllm.inference.detokenizer import TextStream
from easyllm.inference.engine_protocol import TokenLogprob
from easyllm.inference.token_texts import TokenText, TokenTexts
from tests.inference import saying
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


def told(tokenizer: Any, ids: list[int], stop: tuple[str, ...]) -> tuple[str, list[TokenText]]:
    """An answer's text and tokens, as they come three at a time."""
    text = TextStream(tokenizer, stop)
    texts = TokenTexts(tokenizer, text.would_add)
    whole, grown, found = "", "", []
    for number, token in enumerate(ids, 1):
        texts.ask(TokenLogprob(token, -1.0, ((5, -0.5), (token, -1.0), (6, -2.0))))
        grown += text.feed(token)
        texts.grow(text.new)
        if text.stopped:
            break
        if number % 3 == 0:
            found += texts.certain(len(grown), False)
            whole, grown = whole + grown, ""
    if not text.stopped:
        grown += text.finish()
        texts.end(text.new)
    return whole + grown, found + texts.certain(len(grown), True)


@pytest.mark.parametrize("spaced", [False, True])
def test_whatever_a_model_draws_the_tokens_are_the_text(tokenizer: Any, spaced: bool) -> None:
    """Bytes in any order too, of which tokenizers read some otherwise once others follow."""
    tokenizer = saying.tokenizer() if spaced else tokenizer
    draw = random.Random(7)
    words = ["é", "😊", "日本", " "]
    for _ in range(1000):
        ids: list[int] = []
        for _ in range(draw.randrange(1, 6)):
            some = tokenizer(draw.choice(words), add_special_tokens=False)["input_ids"]
            drawn = [draw.randrange(len(tokenizer)) for _ in range(2)]
            ids += draw.choice([some, some[:1], some[1:], drawn])
        stop = draw.choice([(), (" ",), ("é", "本"), ("😊",)])
        text, tokens = told(tokenizer, ids, stop)
        assert "".join(one.text for one in tokens) == text
        if "\ufffd" not in text and not stop:
            assert b"".join(one.bytes or b"" for one in tokens).decode() == text
            assert text == tokenizer.backend_tokenizer.decode(ids)


def test_bytes_that_are_no_characters_end_no_answer() -> None:
    tokenizer = saying.tokenizer()
    ids = tokenizer.convert_tokens_to_ids(["<0x41>", "<0xF0>", "▁the", "<0xE9>", "▁it"])
    text, tokens = told(tokenizer, ids, ())
    assert text == "A\ufffd the\ufffd it"
    assert [one.text for one in tokens] == ["A", "", "\ufffd the", "", "\ufffd it"]
    assert [one.bytes for one in tokens] == [b"A", b"\xf0", b" the", b"\xe9", b" it"]


def test_what_could_have_come_instead() -> None:
    tokenizer = saying.tokenizer()
    the, it, end, half = tokenizer.convert_tokens_to_ids(["▁the", "▁it", "</s>", "<0xF0>"])
    text = TextStream(tokenizer)
    texts = TokenTexts(tokenizer, text.would_add)
    for token in (the, half):
        top = tuple((id_, -float(number)) for number, id_ in enumerate([it, end, half, the]))
        texts.ask(TokenLogprob(token, -1.0, top))
        text.feed(token)
        texts.grow(text.new)
    text.finish()
    texts.end(text.new)
    first, second = texts.certain(5, True)
    assert [(one.text, one.bytes) for one in first.top] == [
        ("it", b"it"), ("</s>", None), ("", b"\xf0"), ("the", b"the")
    ]  # fmt: skip
    assert [(one.text, one.bytes) for one in second.top] == [
        (" it", b" it"), ("</s>", None), ("\ufffd", b"\xf0"), (" the", b" the")
    ]  # fmt: skip
