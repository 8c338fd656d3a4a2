"""A Spark application that runs for one stage."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from py4j.protocol import Py4JError, Py4JNetworkError
from pyspark import SparkConf, SparkContext
from pyspark.errors import PySparkException
from pyspark.java_gateway import launch_gateway
from pyspark.sql import SparkSession

from easyllm.data.executors.pool import Item, Pool, Result
from easyllm.data.executors.spark_task import Task
from easyllm.errors import UserError
from easyllm.files import read_json
from easyllm.spec.run import RunSpec

if TYPE_CHECKING:
    from easyllm.data.executors.components import Spark
    from easyllm.data.shuffle.job import Job

BATCH_BYTES = 16 << 20
"""Bytes of documents in a batch between Spark and a Python process."""

LOST = 5.0
"""Seconds to wait for a JVM to end after its connection is lost."""

FAILURES = (PySparkException, Py4JError, ConnectionError, EOFError)
"""Exceptions of a job that fails, or of a JVM that has ended."""

GRACE = 30.0
"""Seconds to wait for the JVM to end when it is asked to."""


@contextlib.contextmanager
def opened(engine: Spark, run: RunSpec, scratch: Path) -> Iterator[SparkPool]:
    """Start Spark and stop it, its JVM included. Raises UserError where it does not start."""
    log = scratch / "spark.log"
    before = signal.getsignal(signal.SIGINT)
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # nothing of pandas is used
        warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas")
        stack.enter_context(_interpreter(engine))
        conf = SparkConf(loadDefaults=False).setAll(list(_conf(engine, run, scratch).items()))
        # its messages are shown only where the user asks for them or it fails
        quiet = "spark.log.level" not in engine.settings
        output = stack.enter_context(log.open("wb")) if quiet else None
        pool = None
        try:
            gateway = launch_gateway(conf, {"stdout": output, "stderr": output})
            stack.callback(_end, gateway, before)
            pool = SparkPool(engine, SparkContext(conf=conf, gateway=gateway), gateway, scratch)
        except (PySparkException, Py4JError, ValueError, OSError) as error:
            _show(log)
            raise UserError(
                f"Spark does not start with data.engine.master={engine.master}: {_reason(error)}; "
                "give another data.engine.master, or data.engine=local"
            ) from None
        stack.callback(pool.stop)
        try:
            yield pool
        except FAILURES:
            _show(log)
            raise


def _conf(engine: Spark, run: RunSpec, scratch: Path) -> dict[str, str]:
    heap = f"{max(512, int(engine.memory_gb * 1e9) >> 20)}m"
    chosen = {
        "spark.master": engine.master,
        "spark.app.name": f"easyllm {run.name}",
        "spark.driver.memory": heap,  # known before the JVM starts
        "spark.executor.memory": heap,
        "spark.driver.maxResultSize": "0",  # results are few and taken as they come
        "spark.rpc.message.maxSize": "1024",  # MiB: a task may carry the records of its chunk
        "spark.ui.enabled": "false",
        "spark.log.level": "ERROR",
        "spark.sql.adaptive.enabled": "false",  # an output file is a partition
        "spark.sql.execution.arrow.maxBytesPerBatch": str(BATCH_BYTES),
        "spark.executorEnv.PYTHONPATH": os.pathsep.join(_import_path()),
        # one thread each: the tasks are the parallelism
        "spark.executorEnv.RAYON_NUM_THREADS": "1",
        "spark.executorEnv.TOKENIZERS_PARALLELISM": "false",
    }
    if engine.local:
        chosen |= {
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.local.dir": str(scratch),
        }
    return chosen | engine.settings


def _import_path() -> list[str]:
    """Folders from which this process imports besides its Python's own."""
    own = [Path(folder) for folder in sysconfig.get_paths().values()]
    found = [Path(folder or Path.cwd()).absolute() for folder in sys.path]
    return [
        str(folder)
        for folder in dict.fromkeys(found)
        if folder.is_dir() and not any(folder.is_relative_to(place) for place in own)
    ]


@contextlib.contextmanager
def _interpreter(engine: Spark) -> Iterator[None]:
    """Tasks run on this Python; on a cluster, on the one that PYSPARK_PYTHON names."""
    name = "PYSPARK_PYTHON"
    before = os.environ.get(name)
    if engine.local or before is None:
        os.environ[name] = sys.executable
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def _end(gateway: Any, interrupt: Any) -> None:
    """End the JVM, which pyspark keeps for the lifetime of the process."""
    with contextlib.suppress(Exception):
        gateway.shutdown()
    gateway.proc.stdin.close()  # the JVM ends at the end of its input
    try:
        gateway.proc.wait(GRACE)
    except subprocess.TimeoutExpired:
        gateway.proc.kill()
        gateway.proc.wait()
    SparkContext._gateway = SparkContext._jvm = None  # else the next would use the ended JVM
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt)  # Spark replaces the handler


def _show(log: Path) -> None:
    if log.is_file():
        sys.stderr.write(log.read_text("utf-8", "replace"))


def _reason(error: BaseException) -> str:
    """The first line of the message from Java or Spark."""
    cause = getattr(error, "java_exception", None)
    text = str(cause.getMessage()) if cause is not None else str(error)
    return text.strip().partition("\n")[0] or type(error).__name__


class SparkPool(Pool):
    """Tasks of a Spark application."""

    def __init__(self, engine: Spark, context: Any, gateway: Any, scratch: Path):
        self.engine, self.context, self.gateway = engine, context, gateway
        self.note = scratch / "error.json"
        self._session: SparkSession | None = None

    @property
    def session(self) -> SparkSession:
        if self._session is None:
            self._session = SparkSession(self.context)
        return self._session

    def stop(self) -> None:
        with contextlib.suppress(Exception):  # the JVM may be gone
            (self._session or self.context).stop()

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        workers: int | None = None,
    ) -> Iterator[Result]:
        """A task for each item, in jobs of a few: the driver holds the items of two jobs."""
        task, ahead = Task(function, self.note), iter(items)
        waiting: deque[Future[list[Result]]] = deque()
        threads = ThreadPoolExecutor(2)
        try:
            while batch := list(islice(ahead, 2 * self._cores())):
                waiting.append(threads.submit(self._collect, task, batch))
                if len(waiting) == 2:  # one runs while the other's last tasks end
                    yield from self._result(waiting.popleft())
            while waiting:
                yield from self._result(waiting.popleft())
        finally:
            if waiting:
                with contextlib.suppress(Exception):
                    self.context.cancelAllJobs()
            threads.shutdown(wait=True, cancel_futures=True)

    def _cores(self) -> int:
        """Cores of the executors that there are now."""
        with self.as_user_errors():
            return int(self.context.defaultParallelism)

    def _collect(self, task: Task[Item, Result], batch: list[Item]) -> list[Result]:
        found: list[Result] = self.context.parallelize(batch, len(batch)).map(task).collect()
        return found

    def _result(self, job: Future[list[Result]]) -> list[Result]:
        with self.as_user_errors():
            return job.result()

    def shuffle(self, job: Job) -> dict[str, list[dict[str, Any]]]:
        from easyllm.data.shuffle.spark_shuffle import shuffle

        return shuffle(self, job)

    @contextlib.contextmanager
    def as_user_errors(self) -> Iterator[None]:
        """Turn a failed job into the UserError of its task, where there is one."""
        try:
            yield
        except FAILURES as error:
            if self.note.exists():
                raise UserError(read_json(self.note)) from None
            if isinstance(error, Py4JNetworkError | ConnectionError | EOFError):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.gateway.proc.wait(LOST)
            if reason := self._ended(str(error)):
                raise UserError(reason) from None
            raise

    def _ended(self, error: str) -> str:
        """What to do where memory ran out or the cluster ended; empty where a task has a bug."""
        if "OutOfMemoryError" in error:
            more = f"data.engine.memory_gb={2 * self.engine.memory_gb:g}"
            return f"Spark ran out of memory; give {more}"
        if self.gateway.proc.poll() is not None:
            return (
                f"Spark's JVM has ended with status {self.gateway.proc.returncode}, probably out "
                "of memory; give a smaller data.engine.memory_gb or fewer cores, e.g. "
                "data.engine.master=local[1]"
            )
        if "Python worker exited unexpectedly" in error:
            return (
                "a Python process of Spark was killed, probably out of memory; give fewer "
                "cores, e.g. data.engine.master=local[1] or data.engine.conf.spark.executor.cores=1"
            )
        if "SparkContext was shut down" in error or "stopped SparkContext" in error:
            return (
                f"data.engine.master={self.engine.master} does not answer, or has ended the "
                "application; check the cluster, or give another data.engine.master"
            )
        return ""
