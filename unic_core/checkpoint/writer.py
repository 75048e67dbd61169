"""Checkpoints on their way to the store while training goes on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from unic_core.checkpoint.files import Retention, Tensors, prune, write_checkpoint
from unic_core.storage import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    step: int
    tensors: Tensors
    state: Mapping[str, Any]
    metrics: Mapping[str, float]


class CheckpointWriter:
    """Writes checkpoints in a background thread, one at a time, and prunes old ones.

    At most one snapshot waits while another is written: a newer one takes its place, so that a slow store costs
    checkpoints, never training time or memory. An error of a write is raised by the next `save` or by `wait`.

    Args:
        alongside: called in the background thread before every checkpoint: stores what belongs to it.
    """

    def __init__(self, store: Store, retention: Retention, alongside: Callable[[], None] = lambda: None) -> None:
        self.store = store
        self.retention = retention
        self._alongside = alongside
        self._changed = threading.Condition()
        self._waiting: _Job | None = None
        self._busy = False
        self._closing = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def save(
        self, step: int, tensors: Tensors, state: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> None:
        """Hand over a snapshot; returns at once."""
        with self._changed:
            self._raise()
            if self._waiting is not None:
                log.warning(
                    "the checkpoint of step %d is left out: the store is still busy with an earlier one",
                    self._waiting.step,
                )
            self._waiting = _Job(step, tensors, dict(state), dict(metrics or {}))
            self._changed.notify_all()

    def wait(self) -> None:
        """Return when every snapshot that was handed over is stored."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or not (self._busy or self._waiting))
            self._raise()

    def close(self) -> None:
        """Finish the last write and end the thread."""
        try:
            self.wait()
        finally:
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._waiting is not None)
                if self._waiting is None:
                    return
                job, self._waiting, self._busy = self._waiting, None, True
            try:
                self._alongside()
                write_checkpoint(self.store, job.step, job.tensors, job.state, job.metrics)
                prune(self.store, self.retention)
            except BaseException as error:
                with self._changed:
                    self._error = error
            del job  # its tensors are gigabytes
            with self._changed:
                self._busy = False
                self._changed.notify_all()
