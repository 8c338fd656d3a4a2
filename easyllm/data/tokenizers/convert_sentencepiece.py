"""SentencePiece vocabularies in Hugging Face's format, with SentencePiece's own ids.

transformers 5.19 and 4.57 read a folder that holds only ``tokenizer.model`` by the rules of the
class that ``tokenizer_config.json`` names, not by those in the file: AutoTokenizer and
LlamaTokenizer differ, and leave out the dummy prefix, the normaliser or unknown characters.
"""

from __future__ import annotations

import json
import shutil
import string
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from easyllm.data.tokenizers import compare
from easyllm.data.tokenizers.select_backend import WORDS, sample
from easyllm.errors import UserError
from easyllm.models.sentencepiece.pieces import (
    CONTROL,
    NORMAL,
    USER_DEFINED,
    Inexact,
    Pieces,
    tokenizer,
)
from easyllm.models.tokenizer_files import save

MODEL = "tokenizer.model"
CONFIG = "tokenizer_config.json"
MAP = "special_tokens_map.json"
ADDED = "added_tokens.json"
COPIED = ("chat_template*", "additional_chat_templates")
KEPT = ("model_max_length", "padding_side", "truncation_side")
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")
ADD_BOS = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")
"""Classes of transformers that begin a text with the BOS token by default."""
MARKS = ("<|*|>", "<reserved_*>", "[[]UNUSED_TOKEN_*[]]")
"""Names of user-defined symbols that are marks of chats, not parts of texts."""

ROUNDED = (
    " (SentencePiece adds a Unigram model's scores in single precision, and rounding decides "
    "between divisions of equal score)"
)

RUNS = 34
"""Unigram's choice among equal scores is compared up to this many repetitions of a character."""


def applies(folder: Path) -> bool:
    """Whether a folder's tokenizer is a SentencePiece vocabulary and nothing else."""
    return (folder / MODEL).is_file() and not (folder / "tokenizer.json").exists()


def convert(origin: Path, folder: Path, documents: Iterable[str] = ()) -> None:
    """Write the tokenizer of ``origin`` into ``folder``: SentencePiece's ids, by ``tokenizers``.

    The text after a special token is encoded as a separate text, so that the publisher's chats
    are assembled as SentencePiece's library does. It gets a space before it where the vocabulary
    asks for one, unless ``legacy`` is false in ``tokenizer_config.json``. Names of special tokens
    that are user-defined symbols are found in texts, as SentencePiece finds them.
    Raises UserError for a vocabulary that cannot be converted so that hard texts, each token's
    own text and ``documents`` have the ids that SentencePiece gives.
    """
    file, config = origin / MODEL, _settings(origin)
    processor, proto = _load(file)
    _rename(proto, config["added_tokens_decoder"])
    pieces = Pieces(proto, first_only=config.get("legacy") is False)
    try:
        core = tokenizer(pieces)
        special = _special(proto, config)
        _add_tokens(core, pieces, config, special)
    except Inexact as error:
        raise UserError(
            f"{file} cannot be converted so that its ids stay the same: {error}; {compare.REMEDY}"
        ) from None
    _add_begin_and_end(core, config, special)
    kept = {key: config[key] for key in KEPT if config.get(key)}
    templates = config.get("chat_template")
    if isinstance(templates, list):
        templates = {each["name"]: each["template"] for each in templates}
    marks = [t.content for t in core.get_added_tokens_decoder().values() if t.special]
    others = [name for name in marks if name not in special.values()]
    if templates:
        kept["chat_template"] = templates
    save(core, folder, **special, additional_special_tokens=others, **kept)
    shutil.copyfile(file, folder / MODEL)
    for each in origin.iterdir():
        if any(fnmatch(each.name, pattern) for pattern in COPIED):
            copy = shutil.copytree if each.is_dir() else shutil.copyfile
            copy(each, folder / each.name)
    texts = _texts(pieces, documents)
    compare.check(
        file, folder, "sentencepiece", processor.encode, texts, "" if pieces.is_bpe else ROUNDED
    )


def notice_disagreement(folder: Path) -> None:
    """Print where the ids of a folder's ``tokenizer.json`` and ``tokenizer.model`` differ."""
    if not ((folder / MODEL).is_file() and (folder / "tokenizer.json").is_file()):
        return
    try:
        processor, _ = _load(folder / MODEL)
    except UserError:
        return  # some publish another format under this name
    why = compare.differs(folder, "sentencepiece", processor.encode, iter(WORDS))
    if why:
        print(
            f"{folder}: tokenizer.json is taken, and tokenizer.model beside it is another "
            f"vocabulary: {why}",
            file=sys.stderr,
        )


def _load(file: Path) -> tuple[Any, Any]:
    """SentencePiece's processor, and the model's parts. Raises UserError."""
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2
    proto = messages.ModelProto()
    try:
        content = file.read_bytes()
        proto.ParseFromString(content)
        if not proto.pieces:
            raise ValueError("it has no pieces")
        return SentencePieceProcessor(model_proto=content), proto
    except Exception as error:  # protobuf's DecodeError is not a ValueError; SentencePiece has many
        raise UserError(
            f"{file} is not a model of SentencePiece ({_line(error)}); if its format is another, "
            "give data.tokenizer.path=<a folder with its tokenizer.json>, otherwise fetch it again"
        ) from None


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _texts(pieces: Pieces, documents: Iterable[str]) -> Iterator[str]:
    """The texts that are compared: hard texts, each token's text, and documents."""
    symbols = pieces.names(USER_DEFINED)
    yield from sample([*pieces.names(CONTROL), *symbols])
    words = [piece.replace(pieces.space, " ") for piece in pieces.names(NORMAL)]
    yield from words
    for first in range(0, len(words), 100):
        yield "".join(words[first : first + 100])
    if symbols:
        # a piece alone between symbols is not merged, but taken whole
        mark = symbols[0]
        yield from (f"{mark}{word}{mark}" for word in pieces.names(*range(1, 7)))
    if not pieces.is_bpe:
        # it adds scores in single precision: rounding decides between divisions of equal score
        for letter in string.printable:
            for count in range(1, RUNS):
                yield from (letter * count, f"a {letter * count} b")
    yield from documents


def _settings(folder: Path) -> dict[str, Any]:
    """The settings of ``special_tokens_map.json``, overridden by ``tokenizer_config.json``."""
    settings = {**_read(folder / MAP), **_read(folder / CONFIG)}
    added = settings.get("added_tokens_decoder")
    if not isinstance(added, dict):
        added = {number: content for content, number in _read(folder / ADDED).items()}
    settings["added_tokens_decoder"] = added
    return settings


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}; fetch it again") from None
    return content if isinstance(content, dict) else {}


def _special(proto: Any, config: dict[str, Any]) -> dict[str, str]:
    """BOS, EOS, unknown and padding token: as the folder names them, otherwise as the model."""
    trainer, names = proto.trainer_spec, [piece.piece for piece in proto.pieces]
    found = {}
    for key in SPECIAL:
        number = getattr(trainer, key.replace("token", "id"))
        if key in config:
            if config[key]:
                found[key] = _text(config[key])
        elif 0 <= number < len(names):
            found[key] = names[number]
    return found


def _rename(proto: Any, added: dict[str, Any]) -> None:
    """Give reserved pieces the names by which the folder's added tokens use them."""
    names = {piece.piece for piece in proto.pieces}
    for key, said in added.items():
        number, name = int(key), _text(said)
        if number < len(proto.pieces) and name not in names:
            piece = proto.pieces[number]
            if piece.type != NORMAL:
                piece.piece, piece.type = name, CONTROL


def _text(token: Any) -> str:
    """A special token, written as text or with its attributes."""
    return str(token["content"] if isinstance(token, dict) else token)


def _add_tokens(core: Any, pieces: Pieces, config: dict[str, Any], special: dict[str, str]) -> None:
    """Add control tokens, marks of chats and the folder's added tokens by their names."""
    from tokenizers import AddedToken

    listed = {_text(token) for key in LISTS for token in _listed(config.get(key))}
    listed |= set(special.values())
    template = json.dumps(config.get("chat_template") or "", ensure_ascii=False)
    known = {piece.piece: piece.type for piece in pieces.proto.pieces}
    tokens: dict[int, Any] = {}
    for number, piece in enumerate(pieces.proto.pieces):
        mark = piece.type == USER_DEFINED and (
            piece.piece in template or any(fnmatch(piece.piece, pattern) for pattern in MARKS)
        )
        if piece.type == CONTROL or piece.piece in listed or mark:
            tokens[number] = AddedToken(piece.piece, normalized=False, special=True)
    for key, said in sorted(config["added_tokens_decoder"].items(), key=lambda item: int(item[0])):
        number, name = int(key), _text(said)
        if name in known and (number >= len(known) or pieces.proto.pieces[number].piece != name):
            raise Inexact(
                f"{ADDED} or {CONFIG} gives {name!r} the id {number}, which the model does not"
            )
        flags = {k: v for k, v in said.items() if k in FLAGS} if isinstance(said, dict) else {}
        flags = {"normalized": False, "special": name in listed or name not in known, **flags}
        if known.get(name) == NORMAL and not flags["special"]:
            continue  # a word, found as one
        if known.get(name) == USER_DEFINED and not flags["special"]:
            continue  # found as SentencePiece finds it
        tokens[number] = AddedToken(name, **flags)
    extra = [name for name in (*special.values(), *sorted(listed)) if name not in known]
    given = {token.content for token in tokens.values()}
    for name in dict.fromkeys(extra):
        if name not in given:
            tokens[max([*tokens, len(known) - 1]) + 1] = AddedToken(
                name, normalized=False, special=True
            )
    for number, token in sorted(tokens.items()):
        core.add_tokens([token])
        if core.token_to_id(token.content) != number:
            raise Inexact(
                f"{ADDED} or {CONFIG} gives {token.content!r} the id {number}, and it would "
                f"have {core.token_to_id(token.content)}"
            )


FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")


def _listed(tokens: Any) -> list[Any]:
    return list(tokens.values()) if isinstance(tokens, dict) else list(tokens or ())


def _add_begin_and_end(core: Any, config: dict[str, Any], special: dict[str, str]) -> None:
    """Begin or end a text with a token where the publisher's tokenizer does."""
    from tokenizers import processors

    named = str(config.get("tokenizer_class", ADD_BOS[0])).removesuffix("Fast")
    bos, eos = special.get("bos_token"), special.get("eos_token")
    first = [bos] if bos and config.get("add_bos_token", named in ADD_BOS) else []
    last = [eos] if eos and config.get("add_eos_token") else []
    if first or last:
        core.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last],
            special_tokens=[(token, core.token_to_id(token)) for token in {*first, *last}],
        )
