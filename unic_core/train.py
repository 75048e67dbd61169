"""The loop. Everything that is not the method hangs on a hook."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from unic_core.config import RunConfig
from unic_core.data.augment import DeviceAugment
from unic_core.data.loader import RawBatch
from unic_core.draw import Draw
from unic_core.optim import Schedule, clip
from unic_core.precision import autocast
from unic_core.task import DistillationTask, LossReport


@dataclass(frozen=True)
class TrainState:
    """Where the run is: `step` optimizer steps are done."""

    step: int = 0

    def next(self) -> TrainState:
        return replace(self, step=self.step + 1)


@dataclass(frozen=True)
class MicroBatch:
    """Images of this process, [B, 3, H, W] float in [0, 1] on the device, with their random numbers."""

    images: Tensor
    draw: Draw


class Hook(Protocol):
    """Called around every optimizer step; `reports` are one per micro-batch and stay on the device."""

    def after_step(self, state: TrainState, reports: Sequence[LossReport]) -> None: ...


def train(
    task: DistillationTask,
    batches: Iterable[Sequence[MicroBatch]],
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    scaler: torch.amp.GradScaler,
    hooks: Sequence[Hook],
    state: TrainState,
    stop: Callable[[TrainState], bool],
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    clip_norm: float | None = None,
) -> TrainState:
    """Run `task` over `batches` until `stop(state)`; returns the final state."""
    parameters = list(task.model.parameters())
    for batch in batches:  # already on the device, already augmented
        schedule.apply(optimizer, state.step)
        reports = []
        for index, micro in enumerate(batch):
            with _synchronize(task.model, last=index == len(batch) - 1):
                with autocast(micro.images.device, precision):
                    report = task(micro.images, micro.draw, state.step / schedule.total)
                scaler.scale(report.loss / len(batch)).backward()  # type: ignore[no-untyped-call]
            reports.append(report)
        scaler.unscale_(optimizer)
        clip(parameters, clip_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        state = state.next()
        for hook in hooks:
            hook.after_step(state, reports)
        if stop(state):
            break
    return state


def _synchronize(model: torch.nn.Module, last: bool) -> AbstractContextManager[None]:
    """Gradients travel between processes only with the last micro-batch."""
    if last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    context: AbstractContextManager[None] = model.no_sync()
    return context


def device_batches(
    raw: Iterable[RawBatch], augment: DeviceAugment, config: RunConfig, device: torch.device
) -> Iterator[list[MicroBatch]]:
    """Group the loader's micro-batches into steps; colors are augmented on the device.

    Copies from pinned memory are asynchronous, so the next batch travels while the device computes.
    """
    group: list[MicroBatch] = []
    for batch in raw:
        draw = Draw(config.seed, batch.epoch, batch.samples).to(device)
        images = augment(batch.images.to(device, non_blocking=True), draw)
        group.append(MicroBatch(images, draw))
        if len(group) == config.training.accumulate:
            yield group
            group = []
