"""Work by threads and by processes: bounded, quick to stop, and with nothing left running."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import connection
from pathlib import Path
from typing import Any, TypeVar

import torch

from unic_core.errors import UnicError

T = TypeVar("T")
R = TypeVar("R")
Count = Callable[[int], None]

_CGROUP = Path("/sys/fs/cgroup/cpu.max")
_TICK_SECONDS = 0.5


def usable_cpus() -> int:
    """Processors that this process may use: in a container often fewer than the machine has."""
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = _CGROUP.read_text().split()
        return max(1, min(cpus, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no limit
        return cpus


def in_order(function: Callable[[T], R], items: Iterable[T], threads: int) -> Generator[R, None, None]:
    """`map` by threads: results in order, at most a few items per thread ahead, nothing left running at the end."""
    pool = ThreadPoolExecutor(threads)
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 4 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def by_processes(
    function: Callable[[T, Count], R], tasks: Iterable[T], processes: int, tick: Callable[[int], None]
) -> Generator[R, None, None]:
    """`map` by processes, results as they come; two tasks per process are held at a time.

    Args:
        function: called with a task and a function that it calls with the items it has done since the last call.
            Both it and the tasks are pickled. One process means this one.
        tick: called with the number of items done, now and then.

    Raises:
        UnicError: a process was killed, or `function` raised it.
    """
    if processes <= 1:
        yield from _here(function, tasks, tick)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
    done, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(processes, context, _begin, (done, stop))
    running: set[Future[R]] = set()
    tasks = iter(tasks)
    try:
        while True:
            running |= {pool.submit(_run, function, task) for task in islice(tasks, 2 * processes - len(running))}
            if not running:
                return
            finished, running = wait(running, _TICK_SECONDS, FIRST_COMPLETED)
            tick(done.value)
            for future in finished:
                yield future.result()
    except BrokenProcessPool:
        raise UnicError(
            "a process that reads images was killed, most likely for lack of memory; "
            "use fewer workers and run the same command again: it continues"
        ) from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _here(
    function: Callable[[T, Count], R], tasks: Iterable[T], tick: Callable[[int], None]
) -> Generator[R, None, None]:
    done = 0

    def count(items: int) -> None:
        nonlocal done
        done += items
        tick(done)

    for task in tasks:
        yield function(task, count)


# ---------------------------------------------------------------- in the processes

_done: Any = None
_stop: Any = None


class _StoppedError(Exception):
    """The parent wants no more results."""


def _begin(done: Any, stop: Any) -> None:
    global _done, _stop
    _done, _stop = done, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C
    torch.set_num_threads(1)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End with the parent, however it ends."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _run(function: Callable[[T, Count], R], task: T) -> R:
    return function(task, _count)


def _count(items: int) -> None:
    if _stop.is_set():
        raise _StoppedError
    with _done.get_lock():
        _done.value += items
