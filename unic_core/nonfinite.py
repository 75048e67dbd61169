"""Which step and which images made the loss non-finite; nothing is fetched from the device before it is known to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unic_core.distributed import all_gather_stack
from unic_core.task import LossReport

_NEVER = 2**62


class FiniteWatch:
    """Remembers the losses of the steps since the last check: [T, B] numbers a step, on the device.

    Args:
        teachers: names, in the order of the reports.
        describe: what people call a sample, as in `s3://bucket/digits/train/000012`.
    """

    def __init__(self, teachers: Sequence[str], describe: Callable[[int], str]) -> None:
        self.teachers = teachers
        self.describe = describe
        self._steps: list[tuple[int, Tensor, Tensor]] = []

    def add(self, step: int, reports: Sequence[LossReport]) -> None:
        """Keep what one optimizer step (its micro-batches) gave."""
        self._steps += [(step, report.per_image, report.samples) for report in reports]

    def clear(self) -> None:
        """The losses so far are finite."""
        self._steps.clear()

    def explain(self) -> str:
        """The first step with a non-finite loss and its first image. A collective: call it in all processes."""
        device = self._steps[0][1].device
        found = all_gather_stack(torch.tensor(self._first(), device=device)).tolist()
        step, sample, teacher, bad, total = min(found)
        if step == _NEVER:
            return f"after step {self._steps[0][0] - 1}, although every image's loss is finite"
        bad = sum(row[3] for row in found if row[0] == step)
        total = sum(row[4] for row in found if row[0] == step)
        images = "all images" if bad == total else f"{bad} of {total} images"
        return f"at step {step} for {images}, first {self.describe(sample)} against teacher {self.teachers[teacher]}"

    def _first(self) -> tuple[int, int, int, int, int]:
        """(step, sample, teacher, bad images, images) of this process; the step is `_NEVER` when all is finite."""
        first: tuple[int, int, int, int, int] | None = None
        for step, losses, samples in self._steps:
            if first is not None and step != first[0]:
                break
            wrong = ~losses.isfinite()
            images = wrong.any(0)
            bad, total = int(images.sum()), len(images)
            if first is not None:  # another micro-batch of the same step
                first = (*first[:3], first[3] + bad, first[4] + total)
            elif bad:
                image = int(images.nonzero()[0])
                first = (step, int(samples[image]), int(wrong[:, image].nonzero()[0]), bad, total)
        return first or (_NEVER, 0, 0, 0, 0)
