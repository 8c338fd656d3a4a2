"""SentencePiece vocabularies as tokenizers of Hugging Face's format, without remote code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from easyllm.errors import UserError

MODEL = "tokenizer.model"
CONFIG = "tokenizer_config.json"
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def asks_for_code(folder: Path) -> bool:
    """Whether a folder's tokenizer is a SentencePiece vocabulary behind code of its own, as
    Baichuan's is."""
    files = (folder / MODEL, folder / CONFIG)
    if not all(file.is_file() for file in files) or (folder / "tokenizer.json").exists():
        return False
    return "auto_map" in _config(folder)


def convert(origin: Path, folder: Path) -> None:
    """Write the tokenizer of ``origin`` into ``folder``: the same ids, by ``tokenizers``.

    What stands after a reserved token is encoded as a text of its own, with the space before
    it where the vocabulary asks for one; so the publisher's chats are put together too.
    Raises UserError for a vocabulary that is not byte-pair encoding.
    """
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import decoders, normalizers, processors
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    file, config = origin / MODEL, _config(origin)
    messages: Any = sentencepiece_model_pb2
    described = messages.ModelProto()
    described.ParseFromString(file.read_bytes())
    if described.trainer_spec.model_type != described.trainer_spec.BPE:
        raise UserError(
            f"{file} is not of byte-pair encoding, the only kind that is read without remote "
            "code; save the tokenizer with transformers first, which writes tokenizer.json"
        )
    shutil.copyfile(file, folder / MODEL)
    core = LlamaTokenizer.from_pretrained(folder, add_bos_token=False).backend_tokenizer
    # as SentencePiece has it; LlamaTokenizer differs where a text begins with a space
    spec = described.normalizer_spec
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(_pattern(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    core.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    core.pre_tokenizer = None  # type: ignore[assignment]
    parts: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if spec.add_dummy_prefix:
        parts.append(decoders.Strip(content=" ", left=1))
    core.decoder = decoders.Sequence(parts)
    special = {key: _text(config[key]) for key in SPECIAL if config.get(key)}
    first = [special["bos_token"]] if config.get("add_bos_token") else []
    last = [special["eos_token"]] if config.get("add_eos_token") else []
    if first or last:
        core.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last],
            special_tokens=[(token, core.token_to_id(token)) for token in (*first, *last)],
        )
    kept = {key: config[key] for key in ("chat_template", "model_max_length") if config.get(key)}
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, clean_up_tokenization_spaces=False, **special, **kept
    )
    made.save_pretrained(folder)


def _pattern(text: str) -> Any:
    from tokenizers import Regex

    return Regex(text)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / CONFIG} cannot be read: {error}; fetch it again") from None
    return config if isinstance(config, dict) else {}


def _text(token: Any) -> str:
    """A special token, written as text or with its attributes."""
    return str(token["content"] if isinstance(token, dict) else token)
