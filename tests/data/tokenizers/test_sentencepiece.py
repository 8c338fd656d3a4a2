"""SentencePiece's vocabularies, converted: the ids are SentencePiece's own."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as messages
from transformers import AutoTokenizer

import easyllm.models.custom  # noqa: F401
from easyllm.data.tokenizers.backends import HuggingFace
from easyllm.data.tokenizers.convert_sentencepiece import convert
from easyllm.data.tokenizers.encode import load_tokenizer
from easyllm.data.tokenizers.select_backend import sample
from easyllm.errors import UserError
from easyllm.models.sentencepiece import charsmap
from tests.data.spm import (
    LINES,
    SYMBOLS,
    TOPICS,
    TRAINED,
    copied,
    made,
    odd_texts,
    original,
)


@pytest.mark.parametrize("name", [name for name in TRAINED if name != "ties"])
def test_ids_are_sentencepieces_own(
    trained: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """From a folder that holds the model alone."""
    origin = trained(name)
    own = original(origin)
    store = made(tmp_path, origin)
    texts = [*sample(SYMBOLS), *odd_texts(2000), *LINES, TOPICS[:20_000], *TOPICS.split("\n")]
    ids, offsets = HuggingFace().load(store)(texts)
    for number, right in enumerate(own.encode(texts)):
        assert ids[offsets[number] : offsets[number + 1]].tolist() == right, texts[number]
    tokenizer = load_tokenizer(store)
    assert len(tokenizer) == own.vocab_size()
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == (
        "<s>",
        "</s>",
        "<unk>",
    )
    assert tokenizer.eos_token_id == own.eos_id() and tokenizer.pad_token is None
    # the names of special tokens are special in chats
    assert tokenizer("a</s>b", add_special_tokens=False)["input_ids"] == [
        *own.encode("a"),
        own.eos_id(),
        *own.encode("b"),
    ]
    plain = "The quick fox, 12 times"
    ids = tokenizer(plain, add_special_tokens=False)["input_ids"]
    if own.unk_id() not in ids:
        assert tokenizer.decode(ids) == plain


def test_unknown_characters_do_not_vanish(trained: Callable[[str], Path], tmp_path: Path) -> None:
    origin = trained("default")
    own = original(origin)
    ids = load_tokenizer(made(tmp_path, origin))("a 🙂🙂 b 𝄞")["input_ids"]
    assert ids == [own.bos_id(), *own.encode("a 🙂🙂 b 𝄞")] and ids.count(own.unk_id()) == 2


def test_any_class_reads_what_was_made(trained: Callable[[str], Path], tmp_path: Path) -> None:
    """transformers may know the model's type, and has classes with rules of their own."""
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": False,
        "chat_template": "{{ 1 }}",
    }
    origin = copied(trained("default"), tmp_path / "Llama", config)
    own = original(origin)
    store = made(tmp_path, origin)
    said = json.loads((store / "tokenizer_config.json").read_text("utf-8"))
    assert said["tokenizer_class"] == "PreTrainedTokenizerFast"
    text = " The  quick\nbrown ﬁ fox"
    for kind in ("llama", "mistral", "gemma", "baichuan"):
        (store / "config.json").write_text(json.dumps({"model_type": kind}))
        tokenizer = AutoTokenizer.from_pretrained(store)
        assert tokenizer(text)["input_ids"] == own.encode(text), kind
        assert tokenizer.chat_template == "{{ 1 }}"


def test_begin_and_end_are_added_where_the_publisher_does(
    trained: Callable[[str], Path], tmp_path: Path
) -> None:
    own = original(trained("llama"))
    cases: list[tuple[dict[str, Any], list[int], list[int]]] = [
        ({"tokenizer_class": "LlamaTokenizer"}, [1], []),
        ({"tokenizer_class": "LlamaTokenizerFast", "add_eos_token": True}, [1], [2]),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}, [], []),
        ({"tokenizer_class": "BaichuanTokenizer", "auto_map": {}}, [], []),
        ({"tokenizer_class": "BaichuanTokenizer", "add_bos_token": True}, [1], []),
    ]
    for number, (config, first, last) in enumerate(cases):
        home = tmp_path / str(number)
        home.mkdir()
        store = made(home, copied(trained("llama"), home / "origin", config))
        assert load_tokenizer(store)("A fox")["input_ids"] == [*first, *own.encode("A fox"), *last]


def test_what_follows_a_special_token_has_a_prefix_unless_legacy_is_false(
    trained: Callable[[str], Path], tmp_path: Path
) -> None:
    """As transformers' LlamaTokenizer does; texts have SentencePiece's ids either way."""
    own = original(trained("llama"))
    store = made(tmp_path, copied(trained("llama"), tmp_path / "origin", {"legacy": False}))
    tokenizer = load_tokenizer(store)
    hi = own.encode("Hi")
    inner = [own.piece_to_id(p) for p in ("H", "i")]
    assert hi != inner
    found = tokenizer("Hi</s>Hi", add_special_tokens=False)["input_ids"]
    assert found == [*hi, own.eos_id(), *inner]
    texts = [*sample([]), *odd_texts(500)]
    ids, offsets = HuggingFace().load(store)(texts)
    assert [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == own.encode(texts)


def test_marks_of_chats_are_tokens_in_chats_and_symbols_in_texts(
    trained: Callable[[str], Path], tmp_path: Path
) -> None:
    """Baichuan's chats are put together of texts that SentencePiece encodes by themselves."""
    config = {
        "tokenizer_class": "BaichuanTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
        "model_max_length": 4096,
        "eos_token": {"content": "</s>", "__type": "AddedToken"},
        "pad_token": None,
    }
    origin = copied(trained("symbols"), tmp_path / "Baichuan", config, config={"model_type": "x"})
    own = original(origin)
    store = made(tmp_path, origin)
    tokenizer = load_tokenizer(store)
    text = "<reserved_106>Hi<reserved_107>There"
    user, assistant = (own.piece_to_id(f"<reserved_{n}>") for n in (106, 107))
    assert tokenizer(text)["input_ids"] == [
        user,
        *own.encode("Hi"),
        assistant,
        *own.encode("There"),
    ]
    ids, _ = HuggingFace().load(store)([text])
    assert ids.tolist() == own.encode(text) != tokenizer(text)["input_ids"]
    assert tokenizer.get_added_vocab()["<reserved_106>"] == user
    assert "x" not in tokenizer.all_special_tokens and tokenizer.model_max_length == 4096


def test_the_folders_added_tokens_keep_their_ids(
    trained: Callable[[str], Path], tmp_path: Path
) -> None:
    size = original(trained("llama")).vocab_size()
    added = {"<pad>": size, "<|im_end|>": size + 1}
    special = {"pad_token": "<pad>", "eos_token": {"content": "<|im_end|>"}}
    origin = copied(
        trained("llama"), tmp_path / "a", added_tokens=added, special_tokens_map=special
    )
    tokenizer = load_tokenizer(made(tmp_path, origin))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (size, size + 1)
    assert len(tokenizer) == size + 2
    wrong = copied(trained("llama"), tmp_path / "b", added_tokens={"<pad>": size + 7})
    with pytest.raises(UserError, match=rf"'<pad>' the id {size + 7}, and it would have {size}"):
        convert(wrong, tmp_path / "store")


def test_a_published_vocabulary_is_converted_exactly(tmp_path: Path) -> None:
    """Mistral's, which mistral-common carries."""
    data = Path(pytest.importorskip("mistral_common").__file__).parent / "data"
    (tmp_path / "tokenizer.model").write_bytes((data / "tokenizer.model.v1").read_bytes())
    (tmp_path / "store").mkdir()
    convert(tmp_path, tmp_path / "store")
    own = original(tmp_path)
    texts = [*TOPICS.split("\n"), *LINES, *odd_texts(1000)]
    ids, offsets = HuggingFace().load(tmp_path / "store")(texts)
    assert [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == own.encode(texts)


def test_rules_are_read_from_the_model(trained: Callable[[str], Path]) -> None:
    """Each as SentencePiece applies it, and the steps that are made of them too."""
    proto = messages.ModelProto()
    proto.ParseFromString((trained("default") / "tokenizer.model").read_bytes())
    spec = proto.normalizer_spec
    rules = charsmap.rules(spec.precompiled_charsmap)
    assert len(rules) > 200_000 and rules["ﬁ"] == "fi" and rules["か\u3099"] == "が"
    spec.add_dummy_prefix = spec.remove_extra_whitespaces = spec.escape_whitespaces = False
    own = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    some = list(rules)[::97]
    assert own.normalize(some) == [rules[key] for key in some]
    with pytest.raises(ValueError, match="damaged"):
        charsmap.rules(spec.precompiled_charsmap[:1000])
