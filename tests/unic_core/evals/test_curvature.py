"""The starting matrix of L-BFGS against the Hessian that autograd computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unic_core.evals import curvature
from unic_core.evals.curvature import Curvature
from unic_core.evals.softmax import Design, cross_entropy

CLASSES, WIDTH, IMAGES = 3, 5, 40
C = torch.tensor([0.1, 10.0], dtype=torch.float64)


def problem() -> tuple[Design, Tensor, Tensor]:
    """A design, weights [P, K, R + 1] and what `Curvature.at` needs of them."""
    z = torch.cat([torch.randn(WIDTH, IMAGES), torch.ones(1, IMAGES)]).double()
    y = torch.arange(IMAGES) % CLASSES
    penalty = torch.cat([torch.ones(WIDTH), torch.zeros(1)]).double()
    design = Design(z, z.square(), y, penalty, CLASSES)
    theta = torch.randn(len(C), CLASSES, WIDTH + 1).double()
    return design, theta, cross_entropy(design.margins(theta, own=-torch.inf))[1]


def hessian(design: Design, theta: Tensor, c: Tensor) -> Tensor:
    def objective(weight: Tensor) -> Tensor:
        loss = F.cross_entropy((weight @ design.z).T, design.y, reduction="sum")
        return c * loss + (design.penalty * weight.square()).sum() / 2

    return torch.autograd.functional.hessian(objective, theta)  # [K, R + 1, K, R + 1]


@pytest.mark.parametrize("lead", [2, WIDTH + 1])
def test_block_inverts_the_hessian_of_the_last_coordinates(lead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature, "BLOCK", lead * CLASSES)
    design, theta, wrong = problem()
    found = Curvature.at(design, wrong, C)
    for p, c in enumerate(C):
        exact = hessian(design, theta[p], c)[:, -lead:, :, -lead:].reshape(lead * CLASSES, -1)
        ridge = curvature.RIDGE * exact.diagonal().diag()
        product = found.block[p] @ (exact + ridge)
        assert torch.allclose(product, torch.eye(len(product)).double(), atol=1e-6)


def test_other_coordinates_are_divided_by_the_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature, "BLOCK", 2 * CLASSES)
    design, theta, wrong = problem()
    vector = torch.randn(theta.shape).double()
    result = Curvature.at(design, wrong, C).apply(vector)
    for p, c in enumerate(C):
        diagonal = hessian(design, theta[p], c).flatten(0, 1).flatten(1).diagonal().view_as(theta[p])
        assert torch.allclose(result[p, :, :-2], (vector[p] / diagonal)[:, :-2])


def test_too_many_classes_leave_the_diagonal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature, "BLOCK", CLASSES)
    design, theta, wrong = problem()
    found = Curvature.at(design, wrong, C)
    assert found.block.numel() == 0
    assert torch.equal(found.apply(theta), found.diagonal * theta)
    assert torch.equal(found.take(torch.tensor([False, True])).apply(theta[1:]), found.apply(theta)[1:])


def test_images_fitted_to_the_last_digit_give_a_finite_positive_matrix() -> None:
    design, theta, _ = problem()
    single = Design(*(t.float() for t in design[:2]), design.y, design.penalty.float(), CLASSES)
    for tiny in (1e-6, 1e-30, 0.0):
        wrong = torch.full((1, CLASSES, IMAGES), tiny).scatter(1, design.y.expand(1, 1, -1), 0.0)
        found = Curvature.at(single, wrong, C[1:] * 1e5)
        vector = theta[:1].float()
        product = (vector * found.apply(vector)).sum()
        assert product.isfinite()
        assert product > 0


def test_thinned_images_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many copies of every image, of which a share is drawn, in whatever order they come."""
    design, _, wrong = problem()
    copies = torch.arange(400 * IMAGES) % IMAGES
    for order in (copies, copies.sort().values):
        many = Design(*(t[:, order] for t in design[:2]), design.y[order], *design[3:])
        monkeypatch.setattr(curvature, "IMAGES", len(order))
        whole = Curvature.at(many, wrong[:, :, order], C).block
        monkeypatch.setattr(curvature, "IMAGES", len(order) // 2)
        assert (Curvature.at(many, wrong[:, :, order], C).block - whole).norm() < 0.1 * whole.norm()
