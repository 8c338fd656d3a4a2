"""Texts of any size whose paragraphs are drawn anew, with a fixed seed, from those of a corpus."""

from __future__ import annotations

import importlib.util
import json
import random
import re
from pathlib import Path

SPEAKING = ("transformers", "torch", "numpy", "pandas", "datasets", "jinja2", "pyarrow", "hydra")
"""Packages whose docstrings are the corpus where none is given."""


def carried() -> dict[str, list[str]]:
    """Texts that are on every machine that runs this: Python's topics and packages' docstrings."""
    from pydoc_data.topics import topics

    found = {"topics": list(topics.values())}
    for package in SPEAKING:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.submodule_search_locations, package
        files = sorted(Path(spec.submodule_search_locations[0]).rglob("*.py"))
        said = (re.findall(r'"""(.*?)"""', file.read_text("utf-8"), re.DOTALL) for file in files)
        found[package] = ["\n\n".join(texts) for texts in said if texts]
    return found


def given(corpus: Path) -> dict[str, list[str]]:
    """The texts of a folder's JSON Lines, by file."""
    files = sorted(corpus.glob("*.jsonl"))
    if not files:
        raise SystemExit(f"no *.jsonl in {corpus}; give another --corpus")
    return {
        file.stem: [json.loads(line)["text"] for line in file.read_text("utf-8").splitlines()]
        for file in files
    }


def build(folder: Path, corpus: dict[str, list[str]], size: int) -> None:
    """Write ``size`` bytes of text, a file for each part of the corpus, in its proportions."""
    folder.mkdir(parents=True)
    total = sum(len(text.encode()) for texts in corpus.values() for text in texts)
    for name, texts in corpus.items():
        rng = random.Random(name)
        end = "\n\n" if any("\n\n" in text for text in texts) else "\n"
        pages = [[part for part in text.split(end) if part.strip()] for text in texts]
        counts = [len(page) for page in pages if page]
        paragraphs = [paragraph for page in pages for paragraph in page]
        left = size * sum(len(text.encode()) for text in texts) // total
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as out:
            while left > 0:
                text = end.join(rng.choices(paragraphs, k=rng.choice(counts)))
                left -= len(text.encode())
                out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
