"""Data engines: Spark makes what the local engine makes, byte for byte; so does one's own."""

from __future__ import annotations

import contextlib
import gzip
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from easyllm.data.executors.components import Spark
from easyllm.data.executors.pool import Item, Pool, Result
from easyllm.data.store import shards
from easyllm.errors import UserError
from easyllm.preflight import machine
from easyllm.runfile import read_config
from easyllm.spec.roles import DataEngine
from easyllm.spec.run import RunSpec
from tests.data.conftest import Spec, story, work
from tests.data.shuffle.test_shuffle import large, linked  # noqa: F401  (a fixture)
from tests.data.test_kills import STAGES, config, content, start
from tests.support import PATIENCE, merged, needs_java, run_spec

SPARK = {"_target_": "spark", "master": "local[2]", "memory_gb": 1}


class Others(Pool):
    """Python's own pool of processes."""

    def __init__(self, number: int):
        self.number = number

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        workers: int | None = None,
    ) -> Iterator[Result]:
        with multiprocessing.get_context("spawn").Pool(self.number) as pool:
            yield from pool.imap(function, items)


@dataclass(frozen=True, kw_only=True)
class Own(DataEngine):
    """An engine that is not the package's, and has ``map`` only."""

    number: int = 2

    @contextmanager
    def open(self, run: RunSpec, scratch: Path) -> Iterator[Pool]:
        assert scratch.is_dir() and not list(scratch.iterdir())
        yield Others(self.number)


def test_an_engine_outside_the_package(texts: Path, store: Path, tmp_path: Path) -> None:
    places = {
        "components": {"allow": ["tests.data"]},
        "run_dir": str(tmp_path / "run"),
        "model": {"cache": str(tmp_path / "models")},
        "data": {
            "dir": str(tmp_path / "store"),
            "engine": {"_target_": f"{__name__}.Own", "number": 2},
        },
    }
    run, problems = read_config(merged(merged(config(texts), places), {"data": {"workers": 3}}))
    assert not problems
    assert type(run.data.engine).__name__ == "Own"
    work(run, *STAGES)
    local = merged(merged(config(texts), places), {"data": {"dir": str(tmp_path / "local")}})
    local["data"]["engine"] = "local"
    work(read_config(local)[0], *STAGES)
    for stage in STAGES:
        assert content(tmp_path / "store", stage) == content(tmp_path / "local", stage)
    assert not list((tmp_path / "store").glob(".*"))


def java(folder: Path, says: str, status: int = 0) -> Path:
    """A folder with a program named java in its bin/."""
    program = folder / "bin/java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit {status}\n")
    program.chmod(0o755)
    return folder


def problems_of(run: RunSpec) -> list[Any]:
    return [p for p in machine.problems(run) if p.key.startswith("data.engine")]


def test_java_that_is_missing_or_old(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = spec(tmp_path, data={"engine": SPARK})
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    (problem,) = problems_of(run)
    assert (problem.key, problem.value) == ("data.engine", "spark")
    assert problem.message == "needs Java, and there is no java in PATH"
    assert "openjdk-17-jre-headless" in problem.remedy and "data.engine=local" in problem.remedy
    # not of interest to a run without data stages, nor to the local engine
    assert not problems_of(spec(tmp_path, stages=["train"], data={"engine": SPARK}))
    assert not problems_of(spec(tmp_path))

    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
    assert "no java in JAVA_HOME=" in problems_of(run)[0].message
    old = java(tmp_path / "old", 'java version "1.8.0_392"')
    monkeypatch.setenv("JAVA_HOME", str(old))
    assert problems_of(run)[0].message == f"needs Java 17 or newer, and {old}/bin/java is 1.8.0_392"
    monkeypatch.setenv("JAVA_HOME", str(java(tmp_path / "eleven", 'openjdk version "11.0.2"')))
    assert "is 11.0.2" in problems_of(run)[0].message
    broken = java(tmp_path / "broken", "libjvm.so: cannot open", status=1)
    monkeypatch.setenv("JAVA_HOME", str(broken))
    assert "does not run: libjvm.so: cannot open" in problems_of(run)[0].message
    monkeypatch.setenv("JAVA_HOME", str(java(tmp_path / "new", 'openjdk version "21" 2023-09-19')))
    assert not problems_of(run)


def test_what_spark_cannot_be_told(spec: Spec, tmp_path: Path) -> None:
    run = spec(tmp_path)
    engine = Spark(
        master="sc://host", conf={"executor.cores": 1, "spark": {"cores": {"max": None}}}
    )
    told = {p.key: p.message for p in engine.problems("data.engine", run)}
    assert list(told) == [
        "data.engine.master",
        "data.engine.conf.executor.cores",
        "data.engine.conf.spark.cores.max",
    ]
    sound = Spark(conf={"spark.speculation": False, "spark": {"cores": {"max": 4}}})
    assert not list(sound.problems("data.engine", run))
    assert sound.settings == {"spark.speculation": "false", "spark.cores.max": "4"}


@needs_java
@pytest.mark.slow
def test_spark_makes_the_same_store(texts: Path, tmp_path: Path) -> None:
    """Of files read in parts and of one that the driver reads, with labels and without."""
    packed = tmp_path / "packed.txt.gz"
    packed.write_bytes(gzip.compress("\n\n".join(story(i) for i in range(100, 160)).encode()))
    base = merged(
        config(texts), {"data": {"sources": {"packed": {"_target_": "text", "path": str(packed)}}}}
    )
    for engine in ("local", {**SPARK, "conf": {"spark.app.name": "mine"}}):
        name = "local" if engine == "local" else "spark"
        places = {
            "run_dir": str(tmp_path / "run"),
            "data": {"dir": str(tmp_path / name)},
            "model": {"cache": str(tmp_path / "models")},
        }
        run, problems = read_config(merged(merged(base, places), {"data": {"engine": engine}}))
        assert not problems
        made = work(run, *STAGES)
        assert [metrics["documents"] for metrics in made] == [160] * 3
    for stage in STAGES:
        assert content(tmp_path / "spark", stage) == content(tmp_path / "local", stage)
    assert not list((tmp_path / "spark").glob(".*"))
    assert not [p for p in psutil.Process().children(recursive=True) if "java" in p.name()]


@needs_java
@pytest.mark.slow
def test_spark_shuffles_many_row_groups_alike(
    large: Path,  # noqa: F811
    spec: Spec,
    tmp_path: Path,
) -> None:
    for name, engine in (("local", "local"), ("spark", SPARK)):
        place = linked(large, tmp_path / name)
        work(spec(tmp_path / name, data={"engine": engine}), "shuffle")
        for file in place.shuffled.rglob("*.parquet"):
            assert len(shards.groups(file)[0]) > 1 or "talks" in file.name
    assert content(tmp_path / "spark/store", "shuffle") == content(
        tmp_path / "local/store", "shuffle"
    )


@needs_java
@pytest.mark.slow
def test_what_stops_a_task_is_said_as_locally(spec: Spec, tmp_path: Path) -> None:
    """A file that is found damaged in a task, and records that the driver finds too many."""
    bad = tmp_path / "bad.tsv"
    bad.write_text("".join(f"question {n}\n" for n in range(50)))
    told: dict[str, list[str]] = {"local": [], "spark": []}
    for name, engine in (("local", "local"), ("spark", SPARK)):
        run = spec(tmp_path, data={"engine": engine})
        if name == "local":
            work(run, "tokenize")
            (file,) = (tmp_path / "store/tokens").rglob("stories*.parquet")
            data = bytearray(file.read_bytes())
            data[len(data) // 3] ^= 0xFF
            file.write_bytes(data)
        with pytest.raises(UserError) as error:
            work(run, "shuffle")
        told[name].append(str(error.value))
        assert not (tmp_path / "store/shuffled").exists()
        few = {"engine": engine, "sources": {"dialogues": {"path": str(bad)}}, "max_bad_records": 3}
        with pytest.raises(UserError) as error:
            work(spec(tmp_path / name, data={**few, "rows_per_file": 10}), "tokenize")
        told[name].append(str(error.value))
    assert told["local"] == told["spark"]
    damaged, rejected = told["spark"]
    assert "is damaged" in damaged and "tokenize among the stages" in damaged
    assert rejected.startswith("more than data.max_bad_records=3 records cannot be used")


@needs_java
@pytest.mark.slow
def test_a_master_that_is_none(spec: Spec, tmp_path: Path, capfd: Any) -> None:
    run = spec(tmp_path, data={"engine": {"_target_": "spark", "master": "nowhere"}})
    with pytest.raises(UserError, match=r"does not start with data\.engine\.master=nowhere: .*\w"):
        work(run, "tokenize")
    assert not [p for p in psutil.Process().children(recursive=True) if "java" in p.name()]


def jvm(process: psutil.Process) -> psutil.Process:
    """The JVM below a process, once there is one."""
    for _ in range(1200):
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any("SparkSubmit" in word for word in child.cmdline()):
                    return child
        time.sleep(0.05)
    raise AssertionError("no JVM was started")


def gone(process: psutil.Process) -> bool:
    return not psutil.wait_procs([process], timeout=PATIENCE)[1]


@needs_java
@pytest.mark.slow
def test_killed_spark_goes_on_and_leaves_no_jvm(texts: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    spark = merged(config(texts), {"data": {"engine": SPARK}})
    work(run_spec(whole, config(texts)), *STAGES)

    process = start(broken, texts, "tokenize", spark)
    running = jvm(psutil.Process(process.pid))
    pieces, made = broken / "store/.tokens.pieces", broken / "store/.tokens.work"
    while len(list(pieces.glob("*.json"))) < 3:  # the tokenizer's and two of files
        assert process.poll() is None
        time.sleep(0.02)
    kill(process, running)
    before = {f.name: f.stat().st_ino for f in made.rglob("[!.]*.parquet")}
    assert before
    work(run_spec(broken, spark), "tokenize")
    after = {f.name: f.stat().st_ino for f in (broken / "store/tokens").rglob("*.parquet")}
    assert before.items() <= after.items(), "what was finished is made again"

    process = start(broken, texts, "shuffle", spark)
    running = jvm(psutil.Process(process.pid))
    while not list((broken / "store").glob(".shuffled.*.scratch/*/keys.uint64")):
        assert process.poll() is None  # the first pass has begun, the second has not ended
        time.sleep(0.02)
    kill(process, running)
    work(run_spec(broken, spark), "shuffle", "repartition")
    for stage in STAGES:
        assert content(broken / "store", stage) == content(whole / "store", stage)
    assert not list((broken / "store").glob(".*"))


@needs_java
@pytest.mark.slow
def test_a_jvm_that_is_killed_is_said(texts: Path, tmp_path: Path) -> None:
    """By the system, when memory runs out; the next run goes on."""
    spark = merged(config(texts), {"data": {"engine": SPARK}})
    process = start(tmp_path, texts, "tokenize", spark)
    running = jvm(psutil.Process(process.pid))
    while not (tmp_path / "store/.tokens.pieces").exists():
        assert process.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "UserError: Spark" in errors
    assert "JVM has ended with status -9" in errors or "does not start" in errors


def kill(process: subprocess.Popen[str], running: psutil.Process) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert gone(running)


@needs_java
@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_stopped_run_leaves_no_jvm(number: int, status: int, texts: Path, tmp_path: Path) -> None:
    words = [
        "+recipe=demo", "data=text", f"data.sources.text.path={texts / 'stories.txt'}",
        "stages=[tokenize]", "data.engine=spark", "data.engine.master=local[2]",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "easyllm", *words],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    assert process.stderr
    while not (line := process.stderr.readline()).startswith("texts are encoded"):
        assert line, "it has ended"
    running = jvm(psutil.Process(process.pid))  # and its first job, of seconds, is begun
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, errors
    assert gone(running)
    assert "Traceback" not in errors
    record = json.loads(next(tmp_path.glob("runs/*/stages/tokenize.json")).read_text())
    assert record["status"] == "interrupted"
