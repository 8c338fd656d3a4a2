"""The shuffle stage against DuckDB's ``ORDER BY random()``, Polars in memory and Spark.

Token rows lie in zstd parquet and go to zstd parquet, level 1 throughout; each contender is a
process of its own, with as many threads or processes as the others. They take turns, PAIRS
times; a ratio is the median of the pairs' ratios. Memory is what all processes of a contender
hold together, private and their share of what is shared (PSS). With ``--only-easyllm`` the
peers stay out: to see the bound held on more rows than they can take.

The last line is one flat JSON object. Exits 1 when easyllm exceeds its bound.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from easyllm.components import resolver
from easyllm.data.store import manifest, token_files
from easyllm.data.store.shards import Shard
from easyllm.files import atomic_dir, write_json
from easyllm.paths import StorePaths
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import read

CONTENDERS = ("easyllm", "duckdb", "polars", "spark")
FILE_TOKENS = 4_000_000
CODEC_LEVEL = 1
SPARK_HEAP = "6g"
"""What the peak of Spark's memory is mostly made of; less costs it time in collecting garbage."""


def spec(folder: Path, memory: float, workers: int) -> RunSpec:
    run, problems = read(
        {
            "run_dir": str(folder / "run"),
            "data": {"dir": str(folder), "memory_gb": memory, "workers": workers},
            "model": {"cache": str(folder / "models")},
        },
        resolver(),
    )
    assert not problems, problems
    return run


def build(folder: Path, gigabytes: float) -> None:
    """A store of so many bytes of ids: words' frequencies, documents of 20 to 20,000 tokens."""
    place = StorePaths(folder)
    draw = np.random.default_rng(0)
    place.tokenizer.mkdir(parents=True)
    entries: list[dict[str, Any]] = []
    left = int(gigabytes * 1e9 / 4)
    with atomic_dir(place.tokens) as temporary:
        while left > 0:
            size = min(left, FILE_TOKENS)
            lengths = np.clip(draw.lognormal(6, 1.2, size // 200 + 2), 20, 20_000).astype(np.int64)
            ends = np.cumsum(lengths)
            ends = np.append(ends[ends < size], size)
            ids = (50_000 * draw.random(size, np.float32) ** 4).astype(np.int32)
            path = (
                f"text/text-part-00/{token_files.file_name('text-part-00', len(entries), 'zstd')}"
            )
            shard = Shard(ids, np.concatenate([np.zeros(1, np.int64), ends]))
            entries.append(token_files.save(temporary / path, path, shard, "zstd"))
            left -= size
        write_json(
            temporary / "manifest.json",
            {
                "schema": manifest.SCHEMA,
                "made_from": "benchmark",
                **dict.fromkeys(manifest.CARRIED, 0),
                "tokenizer": manifest.tokenizer_identity(place.tokenizer),
                "encoding": {},
                "chats": {},
                "sources": {
                    "text": {"dataset": "text", "weight": 1.0, **token_files.totals(entries)}
                },
                "metrics": {},
            },
        )


def shuffle_easyllm(folder: Path, memory: float, workers: int) -> None:
    from easyllm.data.shuffle.shuffle import shuffle

    shuffle(spec(folder, memory, workers))


def shuffle_duckdb(folder: Path, memory: float, workers: int) -> None:
    import duckdb

    shutil.rmtree(folder / "duckdb", ignore_errors=True)
    (folder / "duckdb").mkdir()
    with duckdb.connect(config={"threads": workers, "temp_directory": str(folder)}) as base:
        base.execute(
            f"COPY (SELECT * FROM '{folder}/tokens/**/*.parquet' ORDER BY random()) "
            f"TO '{folder}/duckdb/out.parquet' "
            f"(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL {CODEC_LEVEL})"
        )


def shuffle_polars(folder: Path, memory: float, workers: int) -> None:
    import polars as pl

    shutil.rmtree(folder / "polars", ignore_errors=True)
    (folder / "polars").mkdir()
    rows = pl.read_parquet(f"{folder}/tokens/**/*.parquet").sample(fraction=1, shuffle=True, seed=1)
    rows.write_parquet(
        folder / "polars/out.parquet", compression="zstd", compression_level=CODEC_LEVEL
    )


def shuffle_spark(folder: Path, memory: float, workers: int) -> None:
    from pyspark.sql import SparkSession, functions

    settings = {
        "spark.driver.memory": SPARK_HEAP,
        "spark.driver.host": "127.0.0.1",
        "spark.local.dir": str(folder),
        "spark.log.level": "ERROR",
        "spark.sql.shuffle.partitions": str(16 * workers),  # some tens of MB each
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    session = SparkSession.builder.master(f"local[{workers}]").config(map=settings).getOrCreate()
    rows = session.read.option("recursiveFileLookup", True).option("pathGlobFilter", "*.parquet")
    (
        rows.parquet(f"{folder}/tokens")
        .orderBy(functions.rand(1))
        .write.mode("overwrite")
        .option("compression", "zstd")
        .option("parquet.compression.codec.zstd.level", CODEC_LEVEL)
        .parquet(f"{folder}/spark")
    )
    session.stop()


def measure(contender: str, folder: Path, memory: float, workers: int) -> tuple[float, float]:
    """Seconds, and the highest memory in 10^9 bytes of the process and those below it."""
    if contender == "easyllm":
        shutil.rmtree(folder / "shuffled", ignore_errors=True)
    command = [sys.executable, __file__, "--run", contender, "--folder", str(folder),
               "--memory-gb", str(memory), "--workers", str(workers)]  # fmt: skip
    began = time.perf_counter()
    process = psutil.Popen(command, env={**os.environ, "POLARS_MAX_THREADS": str(workers)})
    peak = 0
    while process.poll() is None:
        held = 0
        for each in (process, *_children(process)):
            with contextlib.suppress(psutil.Error):
                held += each.memory_full_info().pss
        peak = max(peak, held)
        time.sleep(0.1)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return seconds, peak / 1e9


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return process.children(recursive=True)
    return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=2.0, help="10^9 bytes of ids, 4 a token")
    parser.add_argument("--memory-gb", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only-easyllm", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the rows lie, or are made; kept")
    parser.add_argument("--run", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        globals()[f"shuffle_{args.run}"](args.folder, args.memory_gb, args.workers)
        return 0
    with contextlib.ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (folder / "tokens").exists():
            build(folder, args.gb)
        contenders = CONTENDERS[:1] if args.only_easyllm else CONTENDERS
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        peaks = dict.fromkeys(contenders, 0.0)
        for _ in range(args.pairs):
            for name in contenders:
                took, peak = measure(name, folder, args.memory_gb, args.workers)
                seconds[name].append(took)
                peaks[name] = max(peaks[name], peak)
                print(f"{name:8} {took:7.2f} s   peak {peak:.2f} GB", flush=True)
    result: dict[str, Any] = {"gb": args.gb, "memory_gb": args.memory_gb}
    for name in contenders[1:]:
        ratios = [b / a for a, b in zip(seconds["easyllm"], seconds[name], strict=True)]
        result[f"over_{name}"] = round(statistics.median(ratios), 3)
        result[f"over_{name}_spread"] = f"{min(ratios):.2f}-{max(ratios):.2f}"
        result[f"{name}_peak_gb"] = round(peaks[name], 3)
    result["seconds"] = round(statistics.median(seconds["easyllm"]), 2)
    result["peak_gb"] = round(peaks["easyllm"], 3)
    print(json.dumps(result))
    return int(peaks["easyllm"] > args.memory_gb)


if __name__ == "__main__":
    sys.exit(main())
