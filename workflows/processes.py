"""Ending processes without leaving any behind."""

from __future__ import annotations

import contextlib
import os
import signal

import psutil


def end_descendants(of: int | None = None, grace_s: float = 10.0) -> None:
    """End every descendant of this process, or the process `of` with its descendants.

    Each gets SIGTERM and `grace_s` seconds to clean up, then SIGKILL. Descendants are found before the first
    signal is sent, because the orphans of a dead parent can't be found any more.
    """
    try:
        root = psutil.Process(of or os.getpid())
        processes = root.children(recursive=True)
    except psutil.NoSuchProcess:
        return
    if of is not None:
        processes.append(root)
    _signal(processes, signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=grace_s)
    _signal(alive, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=grace_s)


def _signal(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
