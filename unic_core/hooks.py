"""What hangs on the loop: metrics and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from unic_core.checkpoint import CheckpointWriter, snapshot
from unic_core.distributed import all_sum, rank, world_size
from unic_core.errors import UnicError
from unic_core.history import Record
from unic_core.nonfinite import FiniteWatch
from unic_core.optim import Schedule
from unic_core.student import Student
from unic_core.task import DistillationModel, DistillationTask, LossReport
from unic_core.train import TrainState

T = TypeVar("T")


class Stopwatch:
    """Iterates over `items` and measures how long the consumer had to wait for them, in seconds."""

    def __init__(self) -> None:
        self.waited = 0.0

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        iterator = iter(items)
        while True:
            begin = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.waited += time.perf_counter() - begin
            yield item


class MetricsHook:
    """Sums losses on the device and fetches them every `every` steps as one stacked tensor.

    `emit(step, record)` is called on process 0 with: `loss`, `loss/<teacher>`, `loss/<teacher>/<kind>`,
    `kept/<teacher>` (share of images whose loss counted), `lr`, `progress` (share of the steps), `images_per_s`,
    `data_wait` (share of the time).

    A loss that is not finite raises UnicError in every process at the next fetch.

    Args:
        batch: images of a step over all processes.
        describe: what people call a sample number.
    """

    def __init__(
        self,
        task: DistillationTask,
        schedule: Schedule,
        batch: int,
        every: int,
        emit: Callable[[int, Record], None],
        stopwatch: Stopwatch,
        describe: Callable[[int], str] = str,
    ) -> None:
        self.last: Record = {}
        self.schedule = schedule
        self.batch = batch
        self.every = every
        self.emit = emit
        self.stopwatch = stopwatch
        self.names = ["loss"]
        for teacher, kinds in zip(task.teachers, task.losses, strict=True):
            self.names += [f"loss/{teacher.name}", f"kept/{teacher.name}"]
            self.names += [f"loss/{teacher.name}/{kind}" for kind in kinds]
        self.kinds = [tuple(kinds) for kinds in task.losses]
        self._watch = FiniteWatch([teacher.name for teacher in task.teachers], describe)
        self._sum: Tensor | None = None
        self._steps = 0
        self._begin = time.perf_counter()

    def after_step(self, state: TrainState, reports: Sequence[LossReport]) -> None:
        values = torch.stack([self._values(report) for report in reports]).mean(0)
        self._sum = values if self._sum is None else self._sum + values
        self._steps += 1
        self._watch.add(state.step, reports)
        if state.step % self.every == 0 or state.step == self.schedule.total:
            self.flush(state)

    def flush(self, state: TrainState) -> None:
        """Fetch, check and emit what has been summed since the last time. A collective: call it in all processes."""
        if self._sum is None:
            return
        means = (all_sum(self._sum) / (self._steps * world_size())).tolist()
        seconds = time.perf_counter() - self._begin
        record = dict(zip(self.names, means, strict=True))
        if not math.isfinite(record["loss"]):
            raise UnicError(
                f"the loss became {record['loss']} {self._watch.explain()}; if it is one of few, look at "
                "it, else lower optimizer.lr or set training.precision to bf16 or fp32 and give the run a new name; "
                "its last checkpoint is good"
            )
        self._watch.clear()
        record["lr"] = self.schedule.lr(state.step - 1)
        record["progress"] = state.step / self.schedule.total
        record["images_per_s"] = self._steps * self.batch / seconds
        record["data_wait"] = min(1.0, self.stopwatch.waited / seconds)
        self._sum, self._steps, self.stopwatch.waited = None, 0, 0.0
        self._begin = time.perf_counter()
        self.last = record
        if rank() == 0:
            self.emit(state.step, record)

    def _values(self, report: LossReport) -> Tensor:
        """One row of numbers per micro-batch, in the order of `names`; nothing leaves the device."""
        images = report.per_image.shape[1]
        values = [report.loss.detach()]
        for t, kinds in enumerate(self.kinds):
            values += [report.per_image[t].sum() / images, (report.kept[t] > 0).sum() / images]
            values += [report.tokens[kind][t].sum() / images for kind in kinds]
        return torch.stack([value.float() for value in values])


class KnnHook:
    """Every `every` steps: kNN accuracy of the student, measured by process 0 while the others wait.

    Args:
        probe: student to scores by name.
        emit: called on process 0 with the scores.
    """

    def __init__(
        self, probe: Callable[[Student], Record], student: Student, every: int, emit: Callable[[int, Record], None]
    ) -> None:
        self.probe = probe
        self.student = student
        self.every = every
        self.emit = emit

    def after_step(self, state: TrainState, reports: Sequence[LossReport]) -> None:
        if state.step % self.every == 0 and rank() == 0:
            self.emit(state.step, self.probe(self.student))


class CheckpointHook:
    """Every `every` steps and at the end: a snapshot, written in the background by process 0.

    Args:
        about: what `state.json` says beside the step: config, teachers, data, versions.
    """

    def __init__(
        self,
        model: DistillationModel,
        task: DistillationTask,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        metrics: MetricsHook,
        writer: CheckpointWriter,
        about: dict[str, Any],
        every: int,
    ) -> None:
        self.model = model
        self.task = task
        self.optimizer = optimizer
        self.scaler = scaler
        self.metrics = metrics
        self.writer = writer
        self.about = about
        self.every = every

    def after_step(self, state: TrainState, reports: Sequence[LossReport]) -> None:
        if state.step % self.every == 0 or state.step == self.metrics.schedule.total:
            self.save(state)

    def save(self, state: TrainState) -> None:
        """Make a checkpoint now. Collective: call it in all processes."""
        self.metrics.flush(state)  # a state with a non-finite loss never becomes a checkpoint
        if rank() == 0:
            tensors = snapshot(self.model, self.optimizer, self.task.standardizer)
            about = {**self.about, "scaler": self.scaler.state_dict()}
            self.writer.save(state.step, tensors, about, {"loss": self.metrics.last["loss"]})
