"""Independent parts of a job in processes of their own, with their progress shown here.

Small models waste a second thread on waiting, so one process per core with one thread each finishes sooner than one
process with all threads, and many times sooner where other work shares the cores.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Any, TypeVar

import torch

from ownlet.shared.errors import require
from ownlet.simulations.progress import Progress, Step

__all__ = ["Pool", "worker_pool"]

Result = TypeVar("Result")
Event = tuple[Any, ...] | None

_numbers = itertools.count()
_events: Any = None  # the queue of this worker process, set once when it starts


class Pool:
    """Runs functions in worker processes; each is called with its arguments and then a ``Progress``."""

    def __init__(self, executor: ProcessPoolExecutor) -> None:
        self._executor = executor

    def submit(self, function: Callable[..., Result], *arguments: object) -> Future[Result]:
        """Start ``function(*arguments, progress)`` as soon as a worker is free; all must be picklable."""
        return self._executor.submit(_call, function, arguments)


@contextmanager
def worker_pool(workers: int, progress: Progress) -> Iterator[Pool]:
    """Keep worker processes for the length of the block; what has not started when it is left by an error is dropped.

    Args:
        workers: how many, of one thread each.
        progress: shows the stages that workers open.
    """
    require(workers >= 1, "workers must be at least 1", workers=workers)
    context = get_context("spawn")  # a fork would copy the locks of torch's threads
    events = context.Queue()
    viewer = threading.Thread(target=_show, args=(events, progress), daemon=True)
    viewer.start()
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(events,))
    try:
        yield Pool(executor)
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    finally:
        executor.shutdown()
        events.put(None)
        viewer.join()


def _start(events: Any) -> None:
    global _events
    _events = events
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")


def _end_with_parent() -> None:
    """End this worker when its parent is gone: one that was killed cannot tell its workers to stop."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _call(function: Callable[..., Result], arguments: tuple[object, ...]) -> Result:
    return function(*arguments, _Sender())


class _Sender:
    """The ``Progress`` of a worker: puts what happens into the queue."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Step]:
        """Open a stage; see ``Progress``."""
        key = (os.getpid(), next(_numbers))
        _events.put(("open", key, name, total))
        try:
            yield lambda note, share=1.0: _events.put(("step", key, note, share))
        finally:
            _events.put(("close", key))


def _show(events: queue.Queue[Event], progress: Progress) -> None:
    """Replay the workers' events on the watcher's ``Progress`` until None comes."""
    stages: dict[object, Any] = {}
    steps: dict[object, Step] = {}
    while (event := events.get()) is not None:
        kind, key, *rest = event
        if kind == "open":
            stages[key] = progress.stage(*rest)
            steps[key] = stages[key].__enter__()
        elif kind == "step":
            steps[key](*rest)
        else:
            stages.pop(key).__exit__(None, None, None)
