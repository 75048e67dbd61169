"""Balancers against a loop over images, their distribution, and independence of the batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unic_core.balance import Config, build_balancer
from unic_core.config import EqualConfig, FixedConfig, LossRankedConfig, UniformConfig
from unic_core.draw import Draw
from unic_core.errors import UnicError

TEACHERS = ("a", "b", "c", "d")
CONFIGS: tuple[Config, ...] = (
    LossRankedConfig(),
    UniformConfig(),
    FixedConfig(weights={"d": 0, "b": 2, "a": 1, "c": 0.5}),
    EqualConfig(),
)
KINDS = [config.kind for config in CONFIGS]


def _losses(batch: int, teachers: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(teachers, batch, generator=torch.Generator().manual_seed(seed))


def _dropping_loop(losses: Tensor, drop: float, draw: Draw) -> list[list[float]]:
    """Section 1.5, image by image."""
    numbers = draw.uniform("dropping", len(losses)).tolist()
    kept = [[0.0] * losses.shape[1] for _ in losses]
    for image in range(losses.shape[1]):
        column = losses[:, image].tolist()
        largest = column.index(max(column))
        for teacher in range(len(losses)):
            if teacher == largest or not numbers[image][teacher] < drop:
                kept[teacher][image] = 1.0
    return kept


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 12),
    teachers=st.integers(1, 5),
    drop=st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 99),
)
def test_loss_ranked_is_the_loop(batch: int, teachers: int, drop: float, seed: int) -> None:
    losses = _losses(batch, teachers, seed)
    draw = Draw(seed, 3, torch.arange(batch) * 7)
    balancer = build_balancer(LossRankedConfig(drop=drop), [f"t{i}" for i in range(teachers)])
    weights = balancer.weights(losses, draw)
    assert weights.dtype == torch.float32
    assert weights.tolist() == _dropping_loop(losses, drop, draw)
    assert balancer.plan(draw) is None


def test_the_final_loss_is_the_paper_s_weighted_mean() -> None:
    losses = _losses(64)
    draw = Draw(22, 0, torch.arange(64))
    weights = build_balancer(LossRankedConfig(), TEACHERS).weights(losses, draw)
    kept = [(t, i) for t in range(4) for i in range(64) if _dropping_loop(losses, 0.5, draw)[t][i]]
    expected = sum(losses[t, i].item() for t, i in kept) / len(kept)
    assert ((weights * losses).sum() / weights.sum()).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("drop", [0.0, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("kind", [LossRankedConfig, UniformConfig])
def test_expected_number_of_kept_teachers(kind: type[LossRankedConfig] | type[UniformConfig], drop: float) -> None:
    n = 40_000
    losses = _losses(n)
    kept = build_balancer(kind(drop=drop), TEACHERS).weights(losses, Draw(1, 0, torch.arange(n)))
    counts = kept.sum(0)
    assert counts.min() >= 1
    deviation = (3 * drop * (1 - drop) / n) ** 0.5  # of the mean of n sums of three coins
    assert counts.mean().item() == pytest.approx(1 + 3 * (1 - drop), abs=5 * deviation + 1e-6)
    # the coins of the others are fair and independent: the count is 1 + Binomial(3, 1 - drop)
    assert counts.double().var().item() == pytest.approx(3 * drop * (1 - drop), abs=0.03)
    # each teacher is the one that stays equally often
    share = kept.mean(1)
    torch.testing.assert_close(share, torch.full((4,), (1 + 3 * (1 - drop)) / 4), rtol=0, atol=0.015)


def test_loss_ranked_keeps_the_largest_and_drops_the_others_independently() -> None:
    n = 20_000
    losses = _losses(n)
    kept = build_balancer(LossRankedConfig(), TEACHERS).weights(losses, Draw(1, 0, torch.arange(n)))
    assert (kept.gather(0, losses.argmax(0, keepdim=True)) == 1).all()
    rest = kept[:3, losses.argmax(0) == 3]  # images on which the last teacher is the largest
    correlation = torch.corrcoef(rest)
    torch.testing.assert_close(correlation, torch.eye(3), rtol=0, atol=5 / rest.shape[1] ** 0.5)


def test_uniform_plans_before_any_loss_and_weights_follow_the_plan() -> None:
    draw = Draw(5, 1, torch.arange(500))
    balancer = build_balancer(UniformConfig(drop=0.7), TEACHERS)
    plan = balancer.plan(draw)
    assert plan is not None
    assert plan.dtype == torch.bool
    assert plan.shape == (4, 500)
    assert plan.any(0).all()
    for seed in range(2):
        assert torch.equal(balancer.weights(_losses(500, seed=seed), draw), plan.float())


def test_fixed_weights_follow_the_order_of_the_teachers() -> None:
    weights = build_balancer(CONFIGS[2], TEACHERS).weights(_losses(3), Draw(0, 0, torch.arange(3)))
    assert weights.tolist() == [[1.0] * 3, [2.0] * 3, [0.5] * 3, [0.0] * 3]


def test_none_weighs_all_the_same() -> None:
    weights = build_balancer(EqualConfig(), TEACHERS).weights(_losses(3), Draw(0, 0, torch.arange(3)))
    assert torch.equal(weights, torch.ones(4, 3))


@pytest.mark.parametrize("config", CONFIGS, ids=KINDS)
def test_weights_do_not_depend_on_the_batch(config: Config) -> None:
    losses, samples = _losses(32), torch.randperm(1000)[:32]
    balancer = build_balancer(config, TEACHERS)
    whole = balancer.weights(losses, Draw(7, 2, samples))
    for parts in (2, 4, 32):
        pieces = [
            balancer.weights(part, Draw(7, 2, numbers))
            for part, numbers in zip(losses.chunk(parts, dim=1), samples.chunk(parts), strict=True)
        ]
        assert torch.equal(torch.cat(pieces, dim=1), whole)
    order = torch.randperm(32)
    assert torch.equal(balancer.weights(losses[:, order], Draw(7, 2, samples[order])), whole[:, order])


@pytest.mark.parametrize("config", CONFIGS, ids=KINDS)
def test_weights_carry_no_gradient(config: Config) -> None:
    losses = _losses(8).requires_grad_()
    weights = build_balancer(config, TEACHERS).weights(losses, Draw(0, 0, torch.arange(8)))
    assert not weights.requires_grad
    (weights * losses).sum().backward()  # type: ignore[no-untyped-call]
    assert losses.grad is not None
    assert torch.equal(losses.grad, weights)


@pytest.mark.parametrize("config", [LossRankedConfig(), UniformConfig()], ids=["loss_ranked", "uniform"])
def test_epochs_differ(config: Config) -> None:
    balancer = build_balancer(config, TEACHERS)
    one, two = (balancer.weights(_losses(100), Draw(0, epoch, torch.arange(100))) for epoch in (0, 1))
    assert not torch.equal(one, two)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("config", CONFIGS, ids=KINDS)
def test_the_host_never_waits_for_the_device(config: Config) -> None:
    losses, samples = _losses(64), torch.arange(64)
    on_device, draw = losses.cuda(), Draw(0, 0, samples).to("cuda")
    balancer = build_balancer(config, TEACHERS)
    torch.cuda.set_sync_debug_mode("error")
    try:
        balancer.plan(draw)
        weights = balancer.weights(on_device, draw)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(weights.cpu(), balancer.weights(losses, Draw(0, 0, samples)))


def test_mistakes_are_named() -> None:
    with pytest.raises(UnicError, match="'d' does not match"):
        build_balancer(FixedConfig(weights={"a": 1, "b": 1, "c": 1}), TEACHERS)
    with pytest.raises(UnicError, match="all 0"):
        build_balancer(FixedConfig(weights={"a": 0.0}), ["a"])
