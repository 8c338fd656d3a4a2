"""A small export of every family, with each kind of tokenizer and of rotary positions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from easyllm.data.tokenizers.portable import settle
from easyllm.models.config import hf_config, write_description
from easyllm.paths import RunPaths
from easyllm.training.checkpointing.checkpoints import Checkpoint
from easyllm.training.export.hf import export
from tests.inference.small import CHAT
from tests.models.small import SMALL, TOKENS, save
from tests.support import run_spec

WORDS = "the list of 10 or 100 items, if  not empty, is said to be:\n\n\tcafé déjà vu 1234\n" * 9
LONG = 40
"""Tokens that are tried, which for some are more than the positions of their training."""
TYPES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in SMALL},
    "theta": ("qwen2", {"rope_theta": 1e6}),
    "linear": ("llama", {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}),
    "dynamic": ("llama", {
        "max_position_embeddings": 32, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
    }),
    "yarn": ("qwen3", {"rope_theta": 1e6, "rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
    }}),
    "window": ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}),
    "everywhere": ("mistral", {"sliding_window": None, "rope_theta": 1e6, "head_dim": 16}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
}  # fmt: skip
"""By name: a family's small model and what is laid over its configuration."""


@dataclass(frozen=True)
class Exported:
    published: Path
    folder: Path
    tokenizer: Path
    """The store's, which made the tokens that were trained."""
    told: Mapping[str, Any]
    """What the export said of itself."""

    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "config.json").read_text("utf-8"))
        return found


def published_tokenizers(root: Path) -> dict[str, Path]:
    """As transformers 5 writes one; loaded and written by it again; and one of SentencePiece's
    rules that names Llama's class, which transformers 4 has add a begin that 5 does not."""
    byte = Tokenizer(models.BPE())
    byte.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte.decoder = decoders.ByteLevel()
    special = ["<end>", "<begin>", "<turn>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(byte, special, alphabet)
    made = {name: root / name for name in ("new", "again", "llama")}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte, eos_token="<end>", extra_special_tokens=["<turn>"]
    )
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(made["new"])
    AutoTokenizer.from_pretrained(made["new"]).save_pretrained(made["again"])
    piece = Tokenizer(models.BPE(unk_token="<unk>"))
    piece.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    piece.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    _train(piece, ["<unk>", *special], [])
    piece.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=piece, eos_token="<end>", bos_token="<begin>", unk_token="<unk>"
    )
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(made["llama"])
    file = made["llama"] / "tokenizer_config.json"
    config = {**json.loads(file.read_text("utf-8")), "tokenizer_class": "LlamaTokenizer"}
    file.write_text(json.dumps({**config, "add_bos_token": True}), "utf-8")
    return made


def _train(tokenizer: Tokenizer, special: list[str], alphabet: list[str]) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([WORDS], trainer)


def exported(root: Path) -> dict[str, Exported]:
    """Every family's small model, described and exported as a run does; nothing is trained."""
    tokenizers = published_tokenizers(root / "tokenizers")
    made = {}
    for number, (name, (model, over)) in enumerate(TYPES.items()):
        published = save(model, root / name / "published", over=over)
        kind = list(tokenizers)[number % len(tokenizers)]
        run = run_spec(root / name, {
            "model": {"path": str(published), "dtype": "float32"},
            "data": {"seq_len": 32, "tokenizer": {"path": str(tokenizers[kind])}},
        })  # fmt: skip
        store = RunPaths(run).store.tokenizer
        store.mkdir(parents=True)
        run.data.tokenizer.make(run, store)
        settle(store)
        weights = Checkpoint(root / name, 0, 0, {}, {}).weights
        weights.mkdir()
        write_description(run, hf_config(run), weights, conversations=False)
        shutil.copyfile(published / "model.safetensors", weights / "model.safetensors")
        checkpoint = Checkpoint(root / name, 0, 0, {}, {})
        told = export(checkpoint, root / name / "export", run)
        made[name] = Exported(published, root / name / "export", store, told)
    return made
