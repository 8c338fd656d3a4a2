from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from easyllm.data.chat.templates import Plain
from easyllm.data.tokenizers.components import Pretrained
from easyllm.data.tokenizers.encode import encode, load_tokenizer
from easyllm.data.tokenizers.select_backend import choose, load
from easyllm.errors import UserError
from easyllm.spec.checks import problems
from easyllm.spec.roles import Record
from easyllm.spec.run import RunSpec
from tests.data.conftest import Spec, story, work


def pretrained(run: RunSpec, path: Path | None) -> RunSpec:
    tokenizer = Pretrained(path=str(path) if path else None)
    return replace(run, data=replace(run.data, tokenizer=tokenizer))


def test_a_trained_vocabulary_is_reproducible(spec: Spec, store: Path, tmp_path: Path) -> None:
    work(spec(tmp_path), "tokenize")
    files = sorted(file.name for file in (store / "store/tokenizer").iterdir())
    assert "tokenizer.json" in files
    for name in files:
        made, again = store / "store/tokenizer" / name, tmp_path / "store/tokenizer" / name
        assert made.read_bytes() == again.read_bytes()


def test_a_trained_tokenizer_keeps_any_text(store: Path) -> None:
    tokenizer = load_tokenizer(store / "store/tokenizer")
    assert len(tokenizer) == 320
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == tokenizer.bos_token_id
    assert {"<|user|>", "<|assistant|>", "<|endoftext|>"} <= set(tokenizer.all_special_tokens)
    for text in ("  two  spaces\n\ttab", "naïve 你好 🙂", "\x00 it 's"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text


def test_a_published_tokenizer_is_taken_as_it_is(spec: Spec, store: Path, tmp_path: Path) -> None:
    origin = store / "store/tokenizer"
    run = pretrained(spec(tmp_path), origin)
    assert run.data.tokenizer.label(run) == "tokenizer"
    work(run, "tokenize")
    for file in origin.iterdir():
        assert (tmp_path / "store/tokenizer" / file.name).read_bytes() == file.read_bytes()
    config = origin / "tokenizer_config.json"
    assert config in run.data.tokenizer.files(run)
    empty = tmp_path / "empty"
    empty.mkdir()
    run = pretrained(spec(tmp_path / "other"), empty)
    with pytest.raises(UserError, match="holds no tokenizer"):
        work(run, "tokenize")


def test_a_tokenizer_that_cuts_and_pads_is_told_not_to(store: Path, tmp_path: Path) -> None:
    for file in (store / "store/tokenizer").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["truncation"] = {
        "direction": "Right", "max_length": 20, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    content["padding"] = {
        "direction": "Right", "strategy": {"Fixed": 10}, "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    texts = [Record(1, story(1)), Record(2, story(37))]
    found, right = (
        encode(load(choose(None, folder, str(folder), tmp_path), folder), Plain(), texts).shard
        for folder in (tmp_path, store / "store/tokenizer")
    )
    assert found is not None and right is not None
    assert found.lengths.tolist() == right.lengths.tolist()
    assert found.lengths[1] > 20


def test_what_cannot_work_is_a_problem_of_the_spec(spec: Spec, tmp_path: Path) -> None:
    small = spec(tmp_path, data={"tokenizer": {"vocab_size": 200}})
    assert "data.tokenizer.vocab_size" in [problem.key for problem in problems(small)]
    nothing = pretrained(spec(tmp_path), None)
    assert "data.tokenizer.path" in [problem.key for problem in problems(nothing)]
