"""SentencePiece's vocabularies, converted: the ids are SentencePiece's own, or it is refused."""

from __future__ import annotations

import itertools
import json
import pydoc_data.topics
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as messages
from transformers import AutoTokenizer

import easyllm.models.custom  # noqa: F401
from easyllm.data.encoders import HuggingFace
from easyllm.data.encoding import load_tokenizer
from easyllm.data.exactness import sample
from easyllm.data.tokenizer_conversion import charsmap
from easyllm.data.tokenizer_conversion.sentencepiece import convert
from easyllm.data.tokenizers import Pretrained
from easyllm.errors import UserError
from tests.support import run_spec

SYMBOLS = ["<reserved_106>", "<reserved_107>", "<mask>", "ABC", "ﬁx", "é!", "x"]
TOPICS = "\n".join("".join(pydoc_data.topics.topics.values()).splitlines()[:1500])
LINES = [
    "价格是 3.14 元，今天天气很好。 全角ＡＢＣ　と　半角 abc ﬁ ½ Größe, naïve café",
    "がぎぐげご ガギグゲゴ Привет, мир! e\u0301 o\u0302\u0323 か\u3099 ｶﾞ",
]
TRAINED: dict[str, dict[str, Any]] = {
    # SentencePiece's defaults but for the size
    "default": {"model_type": "bpe"},
    "llama": {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
    },
    "symbols": {
        "model_type": "bpe",
        "byte_fallback": True,
        "remove_extra_whitespaces": False,
        "user_defined_symbols": SYMBOLS,
    },
    "squeezed": {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "user_defined_symbols": SYMBOLS,
    },
    "suffix": {"model_type": "bpe", "treat_whitespace_as_suffix": True},
    "bare": {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "byte_fallback": True,
    },
    # without repeated letters there are few divisions of equal score, see below
    "unigram": {
        "model_type": "unigram",
        "input": "single.txt",
        "user_defined_symbols": SYMBOLS[:3],
    },
    "ties": {"model_type": "unigram"},
}

Edit = Callable[[Any], None]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with nothing but a ``tokenizer.model`` of the options named; not to be changed."""
    home = tmp_path_factory.mktemp("sentencepiece")
    text = "\n".join([TOPICS, *LINES * 20])
    (home / "text.txt").write_text(text, "utf-8")
    (home / "single.txt").write_text(re.sub(r"(.)\1+", r"\1", text), "utf-8")

    def folder(name: str) -> Path:
        made = home / name
        if not made.exists():
            made.mkdir()
            settings = {"input": "text.txt", "vocab_size": 640, "hard_vocab_limit": False}
            settings |= TRAINED[name]
            settings["input"] = str(home / settings["input"])
            sentencepiece.SentencePieceTrainer.train(
                model_prefix=str(made / "tokenizer"), minloglevel=2, **settings
            )
            (made / "tokenizer.vocab").unlink()
        return made

    return folder


def copied(
    origin: Path, folder: Path, settings: dict[str, Any] | None = None, **files: Any
) -> Path:
    """The model of ``origin`` in a folder of its own, with these JSON files beside it."""
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes((origin / "tokenizer.model").read_bytes())
    if settings is not None:
        files["tokenizer_config"] = settings
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return folder


def edited(origin: Path, folder: Path, edit: Edit) -> Path:
    """A model changed by hand."""
    proto = messages.ModelProto()
    proto.ParseFromString((origin / "tokenizer.model").read_bytes())
    edit(proto)
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    return folder


def original(folder: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def made(tmp_path: Path, origin: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    Pretrained(path=str(origin)).make(run_spec(tmp_path, {}), folder)
    return folder


def odd_texts(count: int) -> Iterator[str]:
    """Random texts of letters, marks, spaces, symbols and names of tokens; always the same."""
    draw = random.Random(0)
    blocks = [
        *((0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x3040, 0x3100), (0x1100, 0x1200)),
        *((0x900, 0xA00), (0xAC00, 0xAC40), (0xFF00, 0xFFF0), (0, 0x20), (0x2000, 0x2070)),
    ]
    words = [*SYMBOLS, "<s>", "</s>", "<unk>", "<0x41>", "▁", "the", "\u3099", "\r\n", "👩‍🚀", "12"]
    for _ in range(count):
        parts = []
        for _ in range(draw.randint(1, 9)):
            kind = draw.random()
            if kind < 0.25:
                parts.append(draw.choice(words))
            elif kind < 0.4:
                parts.append(" " * draw.randint(1, 3))
            else:
                parts.append(chr(draw.randrange(*draw.choice(blocks))))
        yield "".join(parts)


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
    assert f"of 'xqz' its tokenizer.json makes [{own[0]}, " in said and f"makes {own}; " in said
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
        source = {"_target_": f"easyllm.data.readers.{reader}", "path": str(tmp_path / file)}
        run = run_spec(tmp_path, {"data": {"sources": {"one": source}}})
        (tmp_path / f"store-{reader}").mkdir()
        with pytest.raises(UserError, match=r"xqz' its tokenizer\.json makes"):
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
