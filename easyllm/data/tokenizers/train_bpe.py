"""Training a byte-level BPE vocabulary on a run's sources."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from easyllm.data.sources.work_units import checked
from easyllm.data.tokenizers.special import CHAT_TEMPLATE, END, SPEAKERS
from easyllm.errors import UserError
from easyllm.models.tokenizer_files import save
from easyllm.progress import progress
from easyllm.spec.roles import Record
from easyllm.spec.run import RunSpec


def train(run: RunSpec, folder: Path, vocab_size: int) -> None:
    """Write into ``folder`` a tokenizer trained on ``data.sources``, in Hugging Face's format.

    The same documents give the same vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, *SPEAKERS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with progress("read for the vocabulary, once", None, "char") as bar:

        def texts() -> Iterator[str]:
            for text in _texts(run):
                bar.update(len(text))
                yield text

        tokenizer.train_from_iterator(texts(), trainer)
        if not bar.n:
            raise UserError("data.sources holds no text to train a tokenizer on")
    save(
        tokenizer,
        folder,
        eos_token=END,
        bos_token=END,
        pad_token=END,
        additional_special_tokens=list(SPEAKERS),
        chat_template=CHAT_TEMPLATE,
    )


def _texts(run: RunSpec) -> Iterator[str]:
    for _, reader in sorted(run.data.sources.items()):
        records = itertools.chain.from_iterable(checked(reader, f) for f in reader.files())
        documents = (r.document for r in records if isinstance(r, Record))
        for document in itertools.islice(documents, run.data.max_documents):
            if isinstance(document, str):
                yield document
            else:
                yield from (message["content"] for message in document)
