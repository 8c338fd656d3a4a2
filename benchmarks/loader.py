"""Reading training rows in several processes, against ``datasets`` over a mapped Arrow file.

A store of TOKENS token ids is made and mapped. Then eight processes open it and read rows in a
random order, which takes packing them; so do eight that read rows which were packed before from
an Arrow file that ``datasets`` maps. They take turns, PAIRS times; numbers are medians, their
lowest and highest beside them, and ``over_datasets`` is the median of the pairs' ratios.

- ``ready_s``: from the end of the imports to the first row, in each of eight processes that
  start at once on a store that was mapped and planned before; the slowest of them.
- ``mtok_s``: million tokens a second and process with all eight at work at once on the cores
  there are; the slowest process's. ``alone_mtok_s``: one process with a core to itself.
- ``private_gb``: 10^9 bytes of memory that only the process itself has (USS), of the eight
  together after reading, above eight idle ones with the same imports.
- ``build_s``: making the map from parquet, flushed to the disk; ``plan_s``: an epoch's plan.

The last line is one flat JSON object. Exits 1 when a limit is missed.
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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from shuffle import build

from easyllm.components import resolver
from easyllm.data.dataset.rows import open_rows
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import read

READY_S, MTOK_S, PRIVATE_GB = 2.0, 20.0, 0.2
"""Limits: at most, at least, at most."""

SIDES = ("easyllm", "datasets")

PEER_ROWS = 50_000
"""Rows in the peer's file at most: few enough that both files stay in memory."""


def spec(folder: Path, seq_len: int) -> RunSpec:
    run, problems = read(
        {
            "run_dir": str(folder / "run"),
            "data": {
                "dir": str(folder),
                "cache": str(folder / "cache"),
                "seq_len": seq_len,
                "packing": "best_fit",
            },
            "model": {"cache": str(folder / "models")},
        },
        resolver(),
    )
    assert not problems, problems
    return run


def reader(side: str, folder: Path, seq_len: int, rows: int, number: int) -> None:
    """A process of its own, which says when it has imported, opened and read, and waits between."""
    if side == "datasets":
        import datasets
    say("imported")
    began = time.perf_counter()
    if side == "easyllm":
        found = open_rows(spec(folder, seq_len))
        count, get = found.per_epoch, found.sample
    else:
        table = datasets.Dataset.from_file(str(folder / "rows.arrow")).with_format("numpy")
        count, get = len(table), table.__getitem__
    order = np.random.default_rng(number).permutation(count)[: rows + 1].tolist()
    get(order[0])
    say(time.perf_counter() - began)
    began = time.perf_counter()
    for index in order[1:]:
        get(index)
    say(rows * seq_len / (time.perf_counter() - began) / 1e6)
    sys.stdin.readline()


def say(what: Any) -> None:
    """Tell the parent, and wait until it says to go on."""
    print(json.dumps(what), flush=True)
    sys.stdin.readline()


class Readers:
    """Processes that take each step together."""

    def __init__(self, side: str, count: int, folder: Path, seq_len: int, rows: int):
        command = [sys.executable, __file__, "--reader", side]
        command += ["--folder", str(folder), "--seq-len", str(seq_len), "--rows", str(rows)]
        self._processes = [
            psutil.Popen(
                [*command, "--number", str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for number in range(count)
        ]
        self.answers()  # all have imported

    def private(self) -> float:
        """10^9 bytes."""
        return sum(process.memory_full_info().uss for process in self._processes) / 1e9

    def step(self) -> list[float]:
        for process in self._processes:
            process.stdin.write("\n")
            process.stdin.flush()
        return self.answers()

    def answers(self) -> list[Any]:
        return [json.loads(process.stdout.readline()) for process in self._processes]

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.stdin.close()
            process.wait()


def measure(side: str, count: int, folder: Path, seq_len: int, rows: int) -> dict[str, float]:
    with Readers(side, count, folder, seq_len, rows) as readers:
        idle = readers.private()
        ready, speeds = readers.step(), readers.step()
        return {
            "ready_s": max(ready),
            "mtok_s": min(speeds),
            "private_gb": readers.private() - idle,
        }


def write_arrow(folder: Path, seq_len: int) -> None:
    """The first rows of an epoch, made ready, as an Arrow file of lists."""
    import pyarrow as pa

    rows = open_rows(spec(folder, seq_len))
    names = ("input_ids", "labels", "positions")
    schema = pa.schema([(name, pa.list_(pa.int32(), seq_len)) for name in names])
    with (
        (folder / "rows.part").open("wb") as file,
        pa.ipc.new_stream(file, schema) as stream,
    ):
        count = min(rows.per_epoch, PEER_ROWS)
        for begin in range(0, count, 1000):
            some = range(begin, min(begin + 1000, count))
            parts = zip(*(rows.sample(index) for index in some), strict=True)
            columns = [
                pa.FixedSizeListArray.from_arrays(np.concatenate(p).astype(np.int32), seq_len)
                for p in parts
            ]
            stream.write_batch(pa.record_batch(columns, schema=schema))
    (folder / "rows.part").rename(folder / "rows.arrow")


def median(values: Iterable[float]) -> tuple[float, str]:
    found = sorted(values)
    return round(statistics.median(found), 3), f"{found[0]:.3g}-{found[-1]:.3g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=float, default=1e9)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=6000, help="rows each process reads")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the store lies, or is made; kept")
    parser.add_argument("--reader", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.reader:
        reader(args.reader, args.folder, args.seq_len, args.rows, args.number)
        return 0
    with contextlib.ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (folder / "tokens").exists():
            build(folder, args.tokens * 4 / 1e9)
        builds, plans = [], []
        for _ in range(2):
            shutil.rmtree(folder / "cache", ignore_errors=True)
            began = time.perf_counter()
            rows = open_rows(spec(folder, args.seq_len))
            opened = time.perf_counter()
            builds.append(rows.cache["seconds"])
            rows.sample(0)
            plans.append(time.perf_counter() - opened)
            print(
                f"map: {rows.cache['bytes'] / 1e9:.2f} GB in {builds[-1]:.1f} s, held-out plan "
                f"{opened - began - builds[-1]:.1f} s, plan of an epoch of {rows.per_epoch:,} rows "
                f"{plans[-1]:.1f} s",
                flush=True,
            )
        if not (folder / "rows.arrow").exists():
            write_arrow(folder, args.seq_len)
        found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        alone = []
        for _ in range(args.pairs):
            for side in SIDES:
                rows_read = args.rows if side == "easyllm" else args.rows // 10
                one = measure(side, args.processes, folder, args.seq_len, rows_read)
                found[side].append(one)
                print(
                    f"{side:8} ready {one['ready_s']:.2f} s, {one['mtok_s']:.1f} Mtok/s a process, "
                    f"private {one['private_gb']:.3f} GB",
                    flush=True,
                )
            alone.append(measure("easyllm", 1, folder, args.seq_len, args.rows)["mtok_s"])
    ours = found["easyllm"]
    result: dict[str, Any] = {"tokens": args.tokens, "seq_len": args.seq_len}
    result |= {"processes": args.processes, "cores": len(os.sched_getaffinity(0))}
    for key in ("ready_s", "mtok_s", "private_gb"):
        result[key], result[f"{key}_spread"] = median(one[key] for one in ours)
    result["alone_mtok_s"], result["alone_mtok_s_spread"] = median(alone)
    ratios = [a["mtok_s"] / b["mtok_s"] for a, b in zip(ours, found["datasets"], strict=True)]
    result["over_datasets"], result["over_datasets_spread"] = median(ratios)
    result["datasets_private_gb"], _ = median(one["private_gb"] for one in found["datasets"])
    result["build_s"], result["build_s_spread"] = median(builds)
    result["plan_s"], _ = median(plans)
    result |= {"ready_s_limit": READY_S, "mtok_s_limit": MTOK_S, "private_gb_limit": PRIVATE_GB}
    print(json.dumps(result))
    return int(
        result["ready_s"] > READY_S
        or result["mtok_s"] < MTOK_S
        or result["private_gb"] > PRIVATE_GB
    )


if __name__ == "__main__":
    sys.exit(main())
