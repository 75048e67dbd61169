from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from unic_core.config import OptimizerConfig, load_config
from unic_core.optim import Schedule, build_optimizer, build_schedule, clip


def test_vectors_and_biases_are_not_decayed() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    decayed, plain = build_optimizer(model, OptimizerConfig()).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3)]
    assert len(plain["params"]) == 3
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.03, 0.0)


def test_schedule_warms_up_linearly_and_ends_at_the_floor() -> None:
    schedule = Schedule(peak=1.0, floor=0.1, warmup=10, total=110)
    assert [schedule.lr(i) for i in (0, 5, 10)] == [0.0, 0.5, 1.0]
    assert schedule.lr(60) == pytest.approx(0.55)
    assert schedule.lr(110) == pytest.approx(0.1)
    assert schedule.lr(109) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 0.99)))


def test_paper_peak_is_6e_4_at_batch_512() -> None:
    schedule = build_schedule(load_config("paper_vitb16"), steps_per_epoch=2502)
    assert schedule.peak == pytest.approx(6e-4)
    assert (schedule.warmup, schedule.total) == (25_020, 500_400)


def test_clip_bounds_the_global_norm() -> None:
    weights = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))]
    for weight in weights:
        weight.grad = torch.full_like(weight, 10.0)
    clip(weights, None)
    assert weights[0].grad is not None
    assert weights[0].grad[0] == 10
    clip(weights, 1.0)
    norm = torch.cat([w.grad for w in weights if w.grad is not None]).norm()
    assert norm.item() == pytest.approx(1.0, abs=1e-4)
