"""The workers of a data stage; their number never changes the result."""

from __future__ import annotations

import abc
import gc
import itertools
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from easyllm.errors import UserError

if TYPE_CHECKING:
    from easyllm.data.shuffle.job import Job

Item = TypeVar("Item")
Result = TypeVar("Result")


class Pool(abc.ABC):
    """The workers that a data engine provides for one stage.

    An engine must implement ``map`` only.
    """

    @abc.abstractmethod
    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        workers: int | None = None,
    ) -> Iterator[Result]:
        """``function`` of every item, in the order of the items.

        The function, items and results are pickled. There may be more items than memory holds:
        they are taken as workers become free. ``workers`` limits how many a machine works on at
        once. A UserError that the function raises is raised here. A process works on one item at
        a time: the tokenizer that it keeps is not thread-safe.
        """

    def shuffle(self, job: Job) -> dict[str, list[dict[str, Any]]] | None:
        """Write the files of a shuffle by the engine's own means.

        Returns the manifest's entries by source, or None where the engine has no such means: the
        documents are then sorted out of core through ``map``.
        """
        return None


class Processes(Pool):
    """Processes of this machine, which stay until the block ends."""

    def __init__(self) -> None:
        self._executor: ProcessPoolExecutor | None = None
        self._workers = 0

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    @staticmethod
    def start() -> None:
        """Start in the background what ``map`` will need; returns at once."""
        _context()
        forkserver.ensure_running()

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        workers: int | None = None,
    ) -> Iterator[Result]:
        """See ``Pool.map``; a single item, or one worker, needs no process besides this one."""
        workers = workers or default_workers()
        ahead = iter(items)
        first = list(itertools.islice(ahead, 2))
        ahead = itertools.chain(first, ahead)
        if workers == 1 or len(first) < 2:
            yield from map(function, ahead)
            return
        executor = self._started(workers)
        waiting: deque[Future[Result]] = deque()
        try:
            for item in ahead:
                waiting.append(executor.submit(function, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                f"one of {workers} worker processes was killed, probably out of memory; "
                f"give data.workers={max(1, workers // 2)}"
            ) from None
        finally:
            for future in waiting:
                future.cancel()

    def _started(self, workers: int) -> ProcessPoolExecutor:
        if self._executor is None or self._workers != workers:
            self._stop()
            self._executor = ProcessPoolExecutor(workers, mp_context=_context(), initializer=_begin)
            self._workers = workers
        return self._executor

    def _stop(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
        self._executor = None


def default_workers() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int | None
) -> Iterator[Result]:
    """``function`` of every item, in the order of the items, on processes of this machine."""
    with Processes() as pool:
        yield from pool.map(function, items, workers)


def _context() -> BaseContext:
    """How processes are started.

    Forking a process that runs threads, as tokenizers and arrow do, can hang. Here a server is
    forked, which has imported what the work needs and has not used it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["easyllm.data.tokenize"])
    return context


def _begin() -> None:
    # Ctrl-C reaches every process of the terminal; only the parent handles it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # one thread each: the processes are the parallelism
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    gc.freeze()  # imported objects are not garbage, so the collector need not scan them
    # the system frees a process's memory faster than the process does, bit by bit
    multiprocessing.util.Finalize(None, _end, exitpriority=-1000)


def _end() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _end_with_parent() -> None:
    """End this worker when its parent is killed; it would otherwise wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
