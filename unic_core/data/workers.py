"""Processes that load data: their answers in order, and one sentence when they are killed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from unic_core.errors import UnicError

T = TypeVar("T")


class WorkersKilledError(UnicError):
    """Workers are gone that did not end by themselves."""


def in_workers(
    images: Dataset[T], workers: int, sampler: Sampler[Any] | None = None, prefetch: int = 2
) -> Generator[T, None, None]:
    """What `images` gives for the sampler's requests (default: 0, 1, 2, ...), in their order, loaded by processes.

    Args:
        workers: how many processes; 0 loads in this one. They live as long as the generator.
        prefetch: answers that each of them prepares ahead.

    Raises:
        WorkersKilledError: one of them is gone that did not end by itself.
        Exception: whatever `images` raises; out of a process torch puts that one's traceback before it.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD)
    answers = iter(
        DataLoader(
            images,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            worker_init_fn=_ignore_interrupts,
            prefetch_factor=prefetch if workers else None,
            pin_memory=torch.cuda.is_available(),
        )
    )
    if in_main_thread:  # torch's own handler raises in the middle of whatever runs when a worker dies
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
    try:
        while True:
            try:
                answer = next(answers)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                if not _is_killed(error, workers):
                    raise
                raise WorkersKilledError(
                    "a data worker was killed, most likely for lack of memory or shared memory; "
                    "lower data.workers, or give the pod more memory and a larger /dev/shm"
                ) from error
            yield answer
    finally:
        del answers  # the last reference: ends the workers


def _is_killed(error: Exception, workers: int) -> bool:
    """Whether torch says that a worker is gone; a worker that was killed while handing over leaves a broken pipe."""
    if not workers or "in DataLoader worker process" in str(error):  # raised here, or by a worker that lives
        return False
    return not isinstance(error, RuntimeError) or "DataLoader worker (pid" in str(error)


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the training process alone answers it, and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
