"""Tasks that come with easyllm, in lm-eval's format. They need no network.

``python -m easyllm.tasks.builtin python_keywords`` prints the questions of that task
with their answers, a conversation a line, to train on.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

ITEMS = 60
"""Items of ``python_docs``."""
GIVEN, ASKED = 160, 80
"""Characters of a text that are given, and of each choice."""


def python_docs(**_: Any) -> dict[str, Any]:
    """Texts of CPython's language reference, each with four continuations, of which three are of
    other texts."""
    from pydoc_data.topics import topics

    from datasets import Dataset

    long = GIVEN + ASKED + 40
    texts = [" ".join(topics[name].split()) for name in sorted(topics)]
    texts = [text for text in texts if len(text) > long]
    drawn = random.Random(0)
    chosen = drawn.sample(texts, min(ITEMS, len(texts)))
    parts = [_cut(text) for text in chosen]
    items = []
    for number, (context, right) in enumerate(parts):
        others = [other for n, (_, other) in enumerate(parts) if n != number]
        choices = [right, *drawn.sample(others, 3)]
        drawn.shuffle(choices)
        item = {"context": context, "choices": choices, "answer": choices.index(right)}
        items.append(item)
    return {"test": Dataset.from_list(items)}


def _cut(text: str) -> tuple[str, str]:
    """The beginning of a text, and what follows, both cut after a word."""
    middle = text.rindex(" ", 0, GIVEN)
    return text[:middle], text[middle : text.rindex(" ", middle + 1, middle + ASKED)]


def python_keywords(**_: Any) -> dict[str, Any]:
    """Questions about Python with one-word answers."""
    from datasets import Dataset

    return {"test": Dataset.from_list(_questions())}


def _questions() -> list[dict[str, Any]]:
    lines = (Path(__file__).parent / "python_keywords.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


_CHOICE: dict[str, Any] = {
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "num_fewshot": 0,
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
    "metadata": {"version": 1},
}
TASKS: dict[str, dict[str, Any]] = {
    "python_docs": {
        **_CHOICE, "custom_dataset": python_docs, "doc_to_text": "{{context}}",
        "target_delimiter": "",
    },
    "python_keywords": {
        **_CHOICE, "custom_dataset": python_keywords, "doc_to_text": "{{question}}",
    },
}  # fmt: skip
"""By name as lm-eval describes them."""


if __name__ == "__main__":
    if sys.argv[1:] != ["python_keywords"]:
        sys.exit("usage: python -m easyllm.tasks.builtin python_keywords")
    for item in _questions():
        print(item["question"], item["choices"][item["answer"]], sep="\t")
