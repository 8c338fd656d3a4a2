"""Whoever asks an exported model asks it with the tokens with which it was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from easyllm import runfile
from easyllm.__main__ import main
from easyllm.data.store.shards import UNTRAINED
from tests.data.chat.published import tokenizer_for
from tests.support import LLAMA

TEMPLATE = (
    "{{ '<|im_start|>system\n' + strftime_now('%d %b %Y') + '<|im_end|>\n' }}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '\n</think>\n\n' }}"
    "{% endif %}{% endif %}"
)
"""Asks for today's date, and its prompt opens the reasoning unless it is switched off."""
ASKED = {f"what is {number}?": f"it is {number}" for number in range(8)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on answers without reasoning: tokenized, trained and exported."""
    folder = tmp_path_factory.mktemp("served")
    tokenizer = tokenizer_for(TEMPLATE)
    tokenizer.save_pretrained(folder / "tokenizer")
    lines = [f"{question}\t{answer}" for question, answer in ASKED.items()]
    (folder / "talk.tsv").write_text("\n".join(lines) + "\n")
    reader = {
        "_target_": "easyllm.data.sources.readers.Conversations",
        "path": str(folder / "talk.tsv"),
    }
    spec: dict[str, Any] = {
        "run_dir": str(folder / "run"),
        "stages": ["tokenize", "train", "export"],
        "model": {
            "init": "random",
            "dtype": "float32",
            "config": {**LLAMA, "vocab_size": len(tokenizer)},
        },
        "data": {
            "dir": str(folder / "store"),
            "sources": {"talk": reader},
            "tokenizer": {"path": str(folder / "tokenizer")},
            "seq_len": 64,
        },
        "parallelism": {"global_batch_size": 2},
        "hardware": {"device": "cpu"},
        "training": {"steps": 1},
    }
    (folder / "spec.yaml").write_text(json.dumps(spec))
    assert main([str(folder / "spec.yaml")]) == 0
    return folder


def contexts(folder: Path) -> list[list[int]]:
    """The tokens before the answer of each document of the store."""
    (file,) = (folder / "store/tokens").rglob("*.parquet")
    return [
        row["input_ids"][: next(at for at, label in enumerate(row["labels"]) if label != UNTRAINED)]
        for row in pq.read_table(file).to_pylist()
    ]


def test_plain_transformers_asks_as_it_was_trained(run: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run / "run/export")
    asked = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True
        )["input_ids"]
        for question in ASKED
    ]
    assert asked == contexts(run)
    text = tokenizer.decode(asked[0])
    assert "01 Jan 2025" in text and text.endswith("<think>\n\n</think>\n\n")
    config = json.loads((run / "run/export/generation_config.json").read_text())
    ends = config["eos_token_id"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in (
        ends if isinstance(ends, list) else [ends]
    )


def test_so_do_inference_and_the_server(run: Path) -> None:
    spec = runfile.load(run / "run/run.yaml")
    engine = spec.inference.engine.load(run / "run/export", spec)
    try:
        asked = [
            spec.data.template.prompt(engine.tokenizer, [{"role": "user", "content": question}])
            for question in ASKED
        ]
    finally:
        engine.close()
    assert asked == contexts(run)


def test_the_record_says_how_answers_were_asked_for(run: Path) -> None:
    manifest = json.loads((run / "store/tokens/manifest.json").read_text())
    assert manifest["chats"]["arguments"] == {'{"enable_thinking": false}': len(ASKED)}
    record = json.loads((run / "run/stages/tokenize.json").read_text())
    assert record["metrics"]["conversations"] == len(ASKED)
