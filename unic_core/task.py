"""The pivot: student, projectors, teachers, standardizer, loss and balancer meet here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from unic_core.balance import Balancer, build_balancer
from unic_core.config import RunConfig, TokenLoss
from unic_core.distributed import all_sum, world_size
from unic_core.draw import Draw
from unic_core.losses import teacher_loss, token_weights
from unic_core.precision import DTYPES
from unic_core.projectors import Projectors, build_projectors
from unic_core.standardize import Standardizer, build_standardizer
from unic_core.student import Student
from unic_core.teachers import Teacher, check_hub, check_weights, load_teacher
from unic_core.tokens import TOKEN_KINDS, Features, TokenKind


@dataclass(frozen=True)
class LossReport:
    """What one batch gave. T teachers in the order of the config, B images of this process.

    Attributes:
        loss: scalar to call `backward()` on; its mean over processes is the loss of the global batch.
        per_image: [T, B] loss of every image against every teacher (0 where the teacher did not see it).
        tokens: the same for each token kind, before the kinds are averaged (0 where a teacher lacks the kind).
        kept: [T, B] weights that the balancer gave, 0 for dropped.
        samples: [B] numbers of the images in the training set.
    """

    loss: Tensor
    per_image: Tensor
    tokens: dict[TokenKind, Tensor]
    kept: Tensor
    samples: Tensor


class DistillationModel(nn.Module):
    """Everything with a gradient: the student and its expendable projectors. This is what DDP wraps."""

    def __init__(self, student: Student, projectors: Projectors) -> None:
        super().__init__()
        self.student = student
        self.projectors = projectors

    def forward(self, images: Tensor, draw: Draw) -> Features:
        features: Features = self.projectors(self.student(images, draw))
        return features


class DistillationTask:
    """`task(images, draw) -> LossReport`: one step of UNIC (arXiv 2408.05088, section 3) without the optimizer."""

    def __init__(
        self,
        model: nn.Module,
        teachers: Sequence[Teacher],
        standardizer: Standardizer,
        balancer: Balancer,
        losses: Sequence[dict[TokenKind, TokenLoss]],
        beta: float,
    ) -> None:
        self.model = model
        self.teachers = teachers
        self.standardizer = standardizer
        self.balancer = balancer
        self.losses = losses
        self.beta = beta

    def __call__(self, images: Tensor, draw: Draw, progress: float = 0.0) -> LossReport:
        """The loss of one batch.

        Args:
            images: [B, 3, H, W] float in [0, 1], augmented; each model applies its own normalization.
            draw: the random numbers of exactly these images.
            progress: step / total steps, which drives the standardizer's momentum.
        """
        seen = self._rows(self.balancer.plan(draw))
        targets = self.standardizer(self._teach(images, seen), progress)
        predictions: Features = self.model(images, draw)

        rows_of_teachers: list[Tensor] = []
        tokens: dict[TokenKind, list[Tensor]] = {kind: [] for kind in TOKEN_KINDS}
        for teacher, rows, weights in zip(self.teachers, seen, self.losses, strict=True):
            prediction = {kind: value[rows] for kind, value in predictions[teacher.name].items()}
            loss, parts = teacher_loss(prediction, targets[teacher.name], weights, self.beta)
            rows_of_teachers.append(_spread(loss, rows, len(images)))
            for kind, row in tokens.items():
                part = parts[kind].detach() if kind in parts else torch.zeros_like(loss)
                row.append(_spread(part, rows, len(images)))
        per_image = torch.stack(rows_of_teachers)

        kept = self.balancer.weights(per_image.detach(), draw)
        # the normalizer counts the whole global batch, so that the split over processes changes nothing
        loss = (kept * per_image).sum() * world_size() / all_sum(kept.sum())
        parts_of_tokens = {kind: torch.stack(rows) for kind, rows in tokens.items()}
        return LossReport(loss, per_image.detach(), parts_of_tokens, kept, draw.samples)

    @torch.no_grad()
    def _teach(self, images: Tensor, seen: Sequence[Tensor | slice]) -> Features:
        return {t.name: t(images[rows]) for t, rows in zip(self.teachers, seen, strict=True)}

    def _rows(self, plan: Tensor | None) -> list[Tensor | slice]:
        """The images each teacher sees: all of them, or those the balancer planned before the forward pass."""
        if plan is None:
            return [slice(None)] * len(self.teachers)
        return [row.nonzero().squeeze(1) for row in plan]


def _spread(values: Tensor, rows: Tensor | slice, size: int) -> Tensor:
    """Put the values of the seen images [n] into a row of all images [B]; the others are 0."""
    if isinstance(rows, slice):
        return values
    return torch.zeros(size, dtype=values.dtype, device=values.device).index_copy(0, rows, values)


def check_models(config: RunConfig, cache: Path | None = None) -> None:
    """Find the mistakes that `build_task` would find, in a second and without memory: shapes only, no weights loaded.

    Raises:
        UnicError: a student, projector, teacher or loss that can't be built, a student that can't be saved, or a
            teacher's file with another checksum.
    """
    targets: dict[str, dict[TokenKind, int]] = {}
    for teacher in config.teachers:
        token_weights(config.loss, teacher)
        check_weights(teacher, cache)
        targets[teacher.name] = dict.fromkeys(teacher.tokens, 1)
    if config.student.pretrained:
        check_hub(config.student.model)
    with torch.device("meta"):
        student = Student(config.student.model_copy(update={"pretrained": False}))
        build_projectors(config.projector, targets, student.width, student.depth, student.has_blocks)
        student.to_timm()  # or it would be found after the training that it can't be saved


def build_task(config: RunConfig, device: torch.device | str = "cpu", cache: Path | None = None) -> DistillationTask:
    """Student, projectors, teachers and the rest of one run, on `device`.

    The student's initial weights are a function of `config.seed` alone.

    Raises:
        UnicError: a model, teacher or combination that the config asks for does not exist or does not fit.
    """
    losses = [token_weights(config.loss, teacher) for teacher in config.teachers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        student = Student(config.student)
        dtype = DTYPES[config.training.precision]
        teachers = [load_teacher(t, student.grid, device, dtype, cache) for t in config.teachers]
        targets = {t.name: t.widths for t in teachers}
        projectors = build_projectors(config.projector, targets, student.width, student.depth, student.has_blocks)
    if config.training.compile:
        student.compile_blocks()
    return DistillationTask(
        model=DistillationModel(student, projectors).to(device),
        teachers=teachers,
        standardizer=build_standardizer(config.standardizer, targets).to(device),
        balancer=build_balancer(config.balancer, [t.name for t in teachers]),
        losses=losses,
        beta=config.loss.beta,
    )
