"""Data engines, which do the work of tokenize, shuffle and repartition."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from easyllm.spec.problems import Problem
from easyllm.spec.roles import DataEngine
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import flatten
from easyllm.spec.types import PositiveFloat

if TYPE_CHECKING:
    from easyllm.data.executors.pool import Pool

STAGES = {"tokenize", "shuffle", "repartition"}
"""The stages that a data engine runs."""

SMALL = 1 << 24
"""Up to this many bytes, no process is started before there is work for it."""

JAVA = 17
"""The oldest Java that Spark 4 runs on."""


@dataclass(frozen=True, kw_only=True)
class Local(DataEngine):
    """Processes of this machine, ``data.workers`` of them within ``data.memory_gb``."""

    def start(self, run: RunSpec, size: int) -> None:
        if size > SMALL and run.data.workers != 1:
            from easyllm.data.executors.pool import Processes

            Processes.start()

    @contextmanager
    def open(self, run: RunSpec, scratch: Path) -> Iterator[Pool]:
        from easyllm.data.executors.pool import Processes

        with Processes() as pool:
            yield pool


@dataclass(frozen=True, kw_only=True)
class Spark(DataEngine):
    """Apache Spark 4.1 or newer. Every executor must see the store and the sources under the same
    paths, and executors need a Python with easyllm, at the path of the running one or at
    ``PYSPARK_PYTHON``."""

    requires: ClassVar = {"pyspark": "spark", "pandas": "spark"}

    master: str = "local[*]"
    """Where the executors are: ``local[2]``, ``spark://host:7077``, ``yarn``, ``k8s://…``."""
    memory_gb: PositiveFloat = 2.0
    """Heap of the driver and of each executor, in 10^9 bytes. Spark keeps on the disk what does
    not fit the heap; the Python processes of the tasks take memory in addition."""
    conf: dict[str, Any] = field(default_factory=dict)
    """Spark's own settings, which override easyllm's: ``conf.spark.executor.cores=4``."""

    @property
    def local(self) -> bool:
        return self.master.startswith("local")

    @property
    def settings(self) -> dict[str, str]:
        """``conf`` as Spark takes it."""
        if not self.conf:
            return {}
        return {
            name: str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in flatten(self.conf).items()
        }

    def problems(self, key: str, run: RunSpec) -> Iterator[Problem]:
        if self.master.startswith("sc:"):
            yield Problem(
                f"{key}.master", self.master, "Spark Connect has no RDDs, which easyllm needs",
                "give the cluster's own master: spark://host:7077, yarn, k8s://…, local[*]",
            )  # fmt: skip
        for name, value in flatten(self.conf).items() if self.conf else ():
            if not name.startswith("spark."):
                yield Problem(
                    f"{key}.conf.{name}", value, "is not a setting of Spark",
                    f"they begin with spark., e.g. {key}.conf.spark.executor.cores=4",
                )  # fmt: skip
            elif value is None or isinstance(value, list | dict):
                yield Problem(
                    f"{key}.conf.{name}", value, "must be text, a number, true or false",
                    f"give {key}.conf.{name}=<value>",
                )  # fmt: skip

    def missing(self, key: str, run: RunSpec) -> Iterator[Problem]:
        if STAGES & set(run.stages) and (complaint := java_problem()):
            yield Problem(
                key, "spark", complaint,
                f"install Java {JAVA} or newer (Debian and Ubuntu: apt-get install "
                f"openjdk-{JAVA}-jre-headless) and set JAVA_HOME if it is not the first on PATH, "
                f"or give {key}=local",
            )  # fmt: skip

    def open(self, run: RunSpec, scratch: Path) -> AbstractContextManager[Pool]:
        from easyllm.data.executors.spark import opened

        return opened(self, run, scratch)


def java_problem() -> str:
    """Why Spark finds no usable Java on this machine; empty where it does."""
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home, "bin/java")) if home else shutil.which("java")
    where = f"JAVA_HOME={home}" if home else "PATH"
    if java is None or not os.access(java, os.X_OK):
        return f"needs Java, and there is no java in {where}"
    try:
        done = subprocess.run(
            [java, "-version"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=60,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"needs Java, and {java} cannot be run: {error}"
    said = done.stderr + done.stdout
    version = re.search(r'version "((?:1\.)?(\d+)[^"]*)"', said)
    if done.returncode or version is None:
        first = said.strip().partition("\n")[0] or f"it ended with status {done.returncode}"
        return f"needs Java, and {java} does not run: {first}"
    if int(version[2]) < JAVA:
        return f"needs Java {JAVA} or newer, and {java} is {version[1]}"
    return ""
