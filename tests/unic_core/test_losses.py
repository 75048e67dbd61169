"""The loss of each image against the formula, written with loops, and its gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unic_core.config import LossConfig, TeacherConfig, TokenLoss
from unic_core.errors import UnicError
from unic_core.losses import teacher_loss, token_loss, token_weights
from unic_core.tokens import TokenKind


def _formula(p: list[float], t: list[float], cosine: float, smooth_l1: float, beta: float) -> float:
    """One token, in plain Python."""
    dot = sum(a * b for a, b in zip(p, t, strict=True))
    norms = math.sqrt(sum(a * a for a in p)) * math.sqrt(sum(b * b for b in t))
    gaps = [abs(a - b) for a, b in zip(p, t, strict=True)]
    smooth = [0.5 * gap**2 / beta if gap < beta else gap - 0.5 * beta for gap in gaps]
    return cosine * (1 - dot / norms) + smooth_l1 * sum(smooth) / len(smooth)


def _reference(prediction: Tensor, target: Tensor, weights: TokenLoss, beta: float) -> list[float]:
    tokens = prediction.ndim == 3
    p, t = (x if tokens else x[:, None] for x in (prediction, target))
    values = []
    for image in range(len(p)):
        per_token = [
            _formula(a, b, weights.cosine, weights.smooth_l1, beta)
            for a, b in zip(p[image].tolist(), t[image].tolist(), strict=True)
        ]
        values.append(sum(per_token) / len(per_token))
    return values


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from([(3, 8), (2, 5, 4), (1, 1, 3)]),
    cosine=st.floats(0, 2),
    smooth_l1=st.floats(0.1, 2),
    beta=st.floats(0.05, 3),
    scale=st.floats(0.1, 10),
    seed=st.integers(0, 99),
)
def test_token_loss_is_the_formula(
    shape: tuple[int, ...], cosine: float, smooth_l1: float, beta: float, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    prediction, target = (torch.randn(shape, generator=generator) * scale for _ in range(2))
    weights = TokenLoss(cosine=cosine, smooth_l1=smooth_l1)
    loss = token_loss(prediction, target, weights, beta)
    assert loss.shape == shape[:1]
    assert loss.dtype == torch.float32
    assert loss.tolist() == pytest.approx(_reference(prediction, target, weights, beta), rel=1e-4, abs=1e-5)


def test_a_perfect_prediction_costs_nothing() -> None:
    x = torch.randn(4, 3, 16)
    torch.testing.assert_close(token_loss(x, x, TokenLoss()), torch.zeros(4), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 5)])
@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_gradients_agree_with_finite_differences(shape: tuple[int, ...], beta: float) -> None:
    prediction = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    target = torch.randn(shape, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: token_loss(p, target, TokenLoss(cosine=0.7), beta), (prediction,))


def test_gradients_agree_with_those_of_the_written_out_formula() -> None:
    target = torch.randn(4, 6, 8)
    one = torch.randn(4, 6, 8, requires_grad=True)
    two = one.detach().clone().requires_grad_()
    token_loss(one, target, TokenLoss()).sum().backward()  # type: ignore[no-untyped-call]
    cosine = (two * target).sum(-1) / (two.norm(dim=-1) * target.norm(dim=-1))
    gap = (two - target).abs()
    smooth = torch.where(gap < 1, gap.square() / 2, gap - 0.5)
    (0.5 * (1 - cosine) + 0.5 * smooth.mean(-1)).mean(1).sum().backward()
    torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6)


def test_targets_get_no_gradient() -> None:
    prediction, target = (torch.randn(2, 4, requires_grad=True) for _ in range(2))
    token_loss(prediction, target, TokenLoss()).sum().backward()  # type: ignore[no-untyped-call]
    assert prediction.grad is not None
    assert target.grad is None


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_values_are_fp32_under_autocast_and_for_half_inputs(autocast: torch.dtype) -> None:
    prediction, target = torch.randn(2, 3, 64).to(autocast), torch.randn(2, 3, 64)
    with torch.autocast("cpu", autocast):
        loss = token_loss(prediction, target, TokenLoss())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, token_loss(prediction.float(), target, TokenLoss()), rtol=0, atol=0)


def test_a_zero_prediction_has_a_finite_gradient() -> None:
    prediction = torch.zeros(2, 8, requires_grad=True)
    loss = token_loss(prediction, torch.randn(2, 8), TokenLoss())
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite().all()
    assert prediction.grad is not None
    assert prediction.grad.isfinite().all()


def _both(seed: int) -> dict[TokenKind, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"cls": torch.randn(3, 8, generator=generator), "patch": torch.randn(3, 4, 8, generator=generator)}


def test_teacher_loss_is_the_plain_mean_by_default() -> None:
    teacher = TeacherConfig(name="t", model="m")
    combined, parts = teacher_loss(_both(0), _both(1), token_weights(LossConfig(), teacher))
    assert list(parts) == ["cls", "patch"]
    for kind, part in parts.items():
        assert torch.equal(part, token_loss(_both(0)[kind], _both(1)[kind], TokenLoss()))
    torch.testing.assert_close(combined, (parts["cls"] + parts["patch"]) / 2)


def test_token_weights_of_a_teacher_override_those_of_the_run() -> None:
    own = TokenLoss(weight=3, cosine=0.9, smooth_l1=0.1)
    teacher = TeacherConfig(name="t", model="m", loss={"patch": own})
    weights = token_weights(LossConfig(cls=TokenLoss(cosine=1, smooth_l1=0)), teacher)
    combined, parts = teacher_loss(_both(0), _both(1), weights, beta=0.5)
    cosine = torch.nn.functional.cosine_similarity(_both(0)["cls"], _both(1)["cls"], dim=-1)
    torch.testing.assert_close(parts["cls"], 1 - cosine)
    torch.testing.assert_close(parts["patch"], token_loss(_both(0)["patch"], _both(1)["patch"], own, 0.5))
    torch.testing.assert_close(combined, (parts["cls"] + 3 * parts["patch"]) / 4)


def test_one_kind_alone_and_a_kind_of_weight_zero() -> None:
    alone = token_weights(LossConfig(), TeacherConfig(name="t", model="m", tokens=("cls",)))
    combined, parts = teacher_loss({"cls": _both(0)["cls"]}, {"cls": _both(1)["cls"]}, alone)
    assert torch.equal(combined, parts["cls"])
    silent = token_weights(LossConfig(patch=TokenLoss(weight=0)), TeacherConfig(name="t", model="m"))
    combined, parts = teacher_loss(_both(0), _both(1), silent)
    assert torch.equal(combined, parts["cls"])
    assert (parts["patch"] > 0).all()


def test_mistakes_are_named() -> None:
    only_cls = TeacherConfig(name="t", model="m", tokens=("cls",))
    with pytest.raises(UnicError, match="token weights of teacher t are all 0"):
        token_weights(LossConfig(cls=TokenLoss(weight=0)), only_cls)
    with pytest.raises(UnicError, match="patch, which is not among its tokens"):
        token_weights(LossConfig(), only_cls.model_copy(update={"loss": {"patch": TokenLoss()}}))
    with pytest.raises(UnicError, match=r"\[2, 3, 4\] and target \[2, 1, 4\]"):
        token_loss(torch.zeros(2, 3, 4), torch.zeros(2, 1, 4), TokenLoss())
    with pytest.raises(UnicError, match=r"kinds \['cls'\]"):
        teacher_loss(_both(0), _both(1), {"cls": TokenLoss()})
