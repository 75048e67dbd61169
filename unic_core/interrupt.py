"""Checkpoints on demand: one process learns that time is short, all of them save the same step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum

from unic_core.distributed import agree_max
from unic_core.task import LossReport
from unic_core.train import TrainState


class Wish(IntEnum):
    """What a process wants of the others after a step; the largest wish counts."""

    NONE = 0
    ASK = 1  # all ask the platform together whether a machine is about to be taken away
    STOP = 2  # save and end


class InterruptHook:
    """Asks after every step what the processes wish, and does it in all of them at once.

    The question is one small collective on the CPU; the device is not waited for.

    Args:
        wish: of this process; cheap, asks nobody.
        preempted: whether the platform has announced the end of a machine. A collective of its own: called in all
            processes after one of them wished to ask.
        save: makes a checkpoint of the state; called in all processes.
    """

    def __init__(
        self, wish: Callable[[], Wish], preempted: Callable[[], bool], save: Callable[[TrainState], None]
    ) -> None:
        self.wish = wish
        self.preempted = preempted
        self.save = save
        self.stopped = False
        self._saved = False

    def after_step(self, state: TrainState, reports: Sequence[LossReport]) -> None:
        wish = agree_max(self.wish())
        if wish == Wish.STOP:
            self.save(state)
            self.stopped = True
        elif wish == Wish.ASK:
            preempted = self.preempted()
            if preempted and not self._saved:  # training goes on: the platform ends it when the time has come
                self.save(state)
            self._saved = preempted
