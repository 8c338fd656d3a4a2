"""SentencePiece's vocabularies that cannot be converted to their own ids are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import easyllm.models.custom  # noqa: F401
from easyllm.data.tokenizers.components import Pretrained
from easyllm.data.tokenizers.convert_sentencepiece import convert
from easyllm.errors import UserError
from tests.data.spm import (
    Edit,
    copied,
    edited,
    made,
    original,
)
from tests.support import run_spec


def pieces(*texts: str, score: float = 0.0) -> Edit:
    def edit(proto: Any) -> None:
        for text in texts:
            proto.pieces.add(piece=text, score=score)

    return edit


def test_a_vocabulary_that_comes_out_otherwise_is_refused(
    trained: Callable[[str], Path], tmp_path: Path
) -> None:
    """Of pieces of one score SentencePiece merges the leftmost first, tokenizers the first of
    the vocabulary; and rounding decides which of Unigram's equal divisions is taken."""
    by_score = edited(trained("llama"), tmp_path / "bpe", pieces("qz", "xq"))
    for folder in ("refused", "taken"):
        (tmp_path / folder).mkdir()
    with pytest.raises(UserError) as caught:
        convert(by_score, tmp_path / "refused", ["as before", "xqz"])
    said = str(caught.value)
    own = original(by_score).encode("xqz")
    assert f"its tokenizer.json encodes 'xqz' as [{own[0]}, " in said and f"it as {own}; " in said
    assert "data.tokenizer.path=<a folder with" in said
    convert(by_score, tmp_path / "taken")  # only a document shows it
    with pytest.raises(UserError, match="single precision"):
        convert(trained("ties"), tmp_path / "refused")


def test_the_first_documents_of_the_sources_are_compared(
    trained: Callable[[str], Path], tmp_path: Path
) -> None:
    origin = edited(trained("llama"), tmp_path / "bpe", pieces("qz", "xq"))
    (tmp_path / "a.txt").write_text("one\n\ntwo xqz\n")
    (tmp_path / "b.tsv").write_text("what\txqz\n")
    for reader, file in (("Text", "a.txt"), ("Conversations", "b.tsv")):
        source = {
            "_target_": f"easyllm.data.sources.readers.{reader}",
            "path": str(tmp_path / file),
        }
        run = run_spec(tmp_path, {"data": {"sources": {"one": source}}})
        (tmp_path / f"store-{reader}").mkdir()
        with pytest.raises(UserError, match=r"its tokenizer\.json encodes '[^']*xqz' as"):
            Pretrained(path=str(origin)).make(run, tmp_path / f"store-{reader}")


def test_other_files_and_models_are_refused(trained: Callable[[str], Path], tmp_path: Path) -> None:
    def words(proto: Any) -> None:
        proto.trainer_spec.model_type = 3

    with pytest.raises(UserError, match="divides texts into words or characters"):
        convert(edited(trained("default"), tmp_path / "words", words), tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    for content in (b"", b"IQ== 0\nIg== 1\n"):
        (broken / "tokenizer.model").write_bytes(content)
        with pytest.raises(UserError, match=r"is not a model of SentencePiece .*tokenizer\.json"):
            convert(broken, tmp_path)
    copied(trained("default"), tmp_path / "config", {})
    (tmp_path / "config/tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json cannot be read"):
        convert(tmp_path / "config", tmp_path)


def test_a_tokenizer_json_is_taken_as_it_is_and_a_disagreement_said(
    trained: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("same", "other"):
        (tmp_path / name).mkdir()
        convert(trained("llama"), tmp_path / name)
    (tmp_path / "other/tokenizer.model").write_bytes(
        (trained("default") / "tokenizer.model").read_bytes()
    )
    for name, said in (("same", 0), ("other", 1)):
        (tmp_path / name / "config.json").write_text("{}")
        home = tmp_path / f"run-{name}"
        home.mkdir()
        store = made(home, tmp_path / name)
        assert (store / "tokenizer.json").read_bytes() == (
            tmp_path / name / "tokenizer.json"
        ).read_bytes()
        assert capsys.readouterr().err.count("tokenizer.json is taken") == said
