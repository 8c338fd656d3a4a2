"""Half a megabyte of real English through every data stage."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from easyllm.data.dataset.rows import Row, open_rows
from easyllm.data.sources.readers import PythonDocs
from easyllm.data.tokenizers.encode import load_tokenizer
from tests.data.conftest import work
from tests.support import run_spec


def test_the_language_reference_comes_out_as_it_went_in(tmp_path: Path) -> None:
    run = run_spec(
        tmp_path,
        {
            "stages": ["tokenize", "shuffle", "repartition"],
            "data": {
                "sources": {"docs": {"_target_": "easyllm.data.sources.readers.PythonDocs"}},
                "tokenizer": {"_target_": "easyllm.data.tokenizers.components.ByteLevelBPE"},
                "seq_len": 256,
            },
            "training": {"evaluate": {"fraction": 0.05, "max_rows": 10_000}},
        },
    )
    tokenized, shuffled, _ = work(run, "tokenize", "shuffle", "repartition")
    texts = list(PythonDocs().documents(PythonDocs().files()[0]))
    size = sum(len(text.encode()) for text in texts)
    assert tokenized["documents"] == shuffled["documents"] == len(texts)
    assert tokenized["text_bytes"] == size
    assert tokenized["vocab_size"] == 4096
    assert 3 < size / tokenized["tokens"] < 6  # bytes a token

    rows = open_rows(run)
    tokenizer = load_tokenizer(tmp_path / "store/tokenizer")

    def read(rows: list[Row]) -> list[str]:
        # the first token is there and not trained, as nothing predicts it
        real = [(row.labels != -100) | (row.positions == 0) for row in rows]
        ids = np.concatenate([row.input_ids[kept] for row, kept in zip(rows, real, strict=True)])
        return tokenizer.decode(ids).split("<|endoftext|>")[:-1]

    trained = read([rows.sample(i) for i in range(rows.per_epoch)])
    held = read(rows.heldout())
    assert len(held) == 4
    assert Counter(trained + held) == Counter(texts)
