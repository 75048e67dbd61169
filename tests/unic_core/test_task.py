from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unic_core.balance import Balancer, build_balancer
from unic_core.config import (
    EmaConfig,
    EqualConfig,
    LadderConfig,
    LossConfig,
    LossRankedConfig,
    StudentConfig,
    TokenLoss,
    UniformConfig,
    load_config,
    parse_config,
)
from unic_core.draw import Draw
from unic_core.projectors import build_projectors
from unic_core.standardize import build_standardizer
from unic_core.student import Student
from unic_core.task import DistillationModel, DistillationTask, LossReport, build_task
from unic_core.tokens import TOKEN_KINDS, TokenKind

STUDENT = StudentConfig(model="vit_tiny_patch16_224", image_size=32, patch_size=16, width=16, depth=2, heads=2)
WIDTHS = {"a": 6, "b": 10}


class PoolingTeacher(nn.Module):
    """A frozen random projection of average-pooled patches: the smallest thing with the interface of a teacher."""

    def __init__(self, name: str, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.name, self.grid, self.seen = name, grid, 0
        self.widths: dict[TokenKind, int] = {"cls": width, "patch": width}
        generator = torch.Generator().manual_seed(width)
        self.register_buffer("matrix", torch.randn(3, width, generator=generator))

    def forward(self, images: Tensor) -> dict[TokenKind, Tensor]:
        self.seen += len(images)
        patches = nn.functional.adaptive_avg_pool2d(images, self.grid).flatten(2).transpose(1, 2) @ self.matrix
        return {"cls": patches.mean(1), "patch": patches}


def make_task(balancer: Balancer) -> DistillationTask:
    torch.manual_seed(0)
    student = Student(STUDENT)
    teachers = [PoolingTeacher(name, width, student.grid) for name, width in WIDTHS.items()]
    targets = {t.name: t.widths for t in teachers}
    config = LadderConfig(hidden=8, hidden_last=8)
    projectors = build_projectors(config, targets, student.width, student.depth, student.has_blocks)
    weights: Sequence[dict[TokenKind, TokenLoss]] = [dict.fromkeys(TOKEN_KINDS, TokenLoss()) for _ in teachers]
    return DistillationTask(
        DistillationModel(student, projectors),
        teachers,  # type: ignore[arg-type]
        build_standardizer(EmaConfig(), targets),
        balancer,
        weights,
        LossConfig().beta,
    )


def batch(size: int = 8) -> tuple[Tensor, Draw]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(size, 3, 32, 32, generator=generator), Draw(5, 0, torch.arange(100, 100 + size))


def test_the_loss_is_the_mean_over_what_was_kept() -> None:
    task = make_task(build_balancer(LossRankedConfig(), list(WIDTHS)))
    report = task(*batch())
    assert report.per_image.shape == report.kept.shape == (2, 8)
    expected = (report.kept * report.per_image).sum() / report.kept.sum()
    assert torch.allclose(report.loss, expected)
    assert torch.allclose(report.per_image, (report.tokens["cls"] + report.tokens["patch"]) / 2)
    assert report.kept.gather(0, report.per_image.argmax(0)[None]).min() == 1


def test_gradients_reach_every_parameter_and_only_these() -> None:
    task = make_task(build_balancer(EqualConfig(), list(WIDTHS)))
    task(*batch()).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in task.model.parameters())
    assert not any(p.requires_grad for teacher in task.teachers for p in teacher.buffers())


def test_uniform_dropping_skips_the_teachers_forward_pass() -> None:
    task = make_task(build_balancer(UniformConfig(drop=0.5), list(WIDTHS)))
    report = task(*batch(64))
    seen = [teacher.seen for teacher in task.teachers]  # type: ignore[attr-defined]
    assert seen == report.kept.sum(1).tolist()
    assert sum(seen) < 2 * 64
    assert torch.all(report.per_image[report.kept == 0] == 0)
    report.loss.backward()


def test_the_same_images_get_the_same_draws_wherever_they_are() -> None:
    balancer = build_balancer(LossRankedConfig(), list(WIDTHS))
    images, draw = batch()
    task = make_task(balancer)
    whole = task(images, draw)
    task = make_task(balancer)
    half = task(images[4:], Draw(draw.seed, draw.epoch, draw.samples[4:]))
    assert torch.equal(whole.kept[:, 4:], half.kept)
    assert torch.allclose(whole.per_image[:, 4:], half.per_image, atol=1e-6)


def _one_process(rank: int, world: int, path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}/rendezvous", rank=rank, world_size=world)
    task = make_task(build_balancer(LossRankedConfig(), list(WIDTHS)))
    model = task.model
    task.model = DistributedDataParallel(model)
    images, draw = batch()
    for step in range(2):  # the second step uses statistics that were merged in the first
        rows = [slice(0, 5), slice(5, 8)][rank]  # uneven on purpose
        task.model.zero_grad()
        report = task(images[rows], Draw(draw.seed, step, draw.samples[rows]), step / 2)
        report.loss.backward()
    torch.save({k: p.grad for k, p in model.named_parameters()}, f"{path}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_gradient_of_one(tmp_path: Path) -> None:
    mp.spawn(_one_process, args=(2, str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    task = make_task(build_balancer(LossRankedConfig(), list(WIDTHS)))
    images, draw = batch()
    for step in range(2):
        task.model.zero_grad()
        task(images, Draw(draw.seed, step, draw.samples), step / 2).loss.backward()
    gradients = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, parameter in task.model.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(gradients[0][name], gradients[1][name])
        error = (gradients[0][name] - parameter.grad).norm() / parameter.grad.norm()
        assert error < 1e-4, name


def test_build_task_is_a_function_of_the_config() -> None:
    config = load_config("smoke")
    first, second = build_task(config), build_task(config)
    for (name, p), (_, q) in zip(first.model.named_parameters(), second.model.named_parameters(), strict=True):
        assert torch.equal(p, q), name
    report = first(torch.rand(4, 3, 32, 32), Draw(config.seed, 0, torch.arange(4)))
    assert isinstance(report, LossReport)
    assert report.per_image.shape == (1, 4)
    assert torch.isfinite(report.loss)


@pytest.mark.parametrize("kind", ["batch", "frozen", "phi_s", "none"])
@pytest.mark.parametrize("projector", ["ladder", "mlp", "linear_norm", "transformer"])
def test_every_combination_takes_a_step(kind: str, projector: str) -> None:
    data = load_config("smoke").model_dump(mode="json")
    data["standardizer"] = {"kind": kind}
    data["projector"] = {"kind": projector} | ({"heads": 2} if projector == "transformer" else {"hidden": 8})
    report = build_task(parse_config(data))(torch.rand(4, 3, 32, 32), Draw(1, 0, torch.arange(4)))
    report.loss.backward()
    assert torch.isfinite(report.loss)
