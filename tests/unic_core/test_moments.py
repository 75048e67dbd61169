"""Moments equal those of numpy-like formulas in float64, whatever the split."""

from __future__ import annotations

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from unic_core.moments import Moments, measure, merge


def _assert_moments(moments: Moments, x: Tensor) -> None:
    rows = x.double().reshape(-1, x.shape[-1])
    centered = rows - rows.mean(0)
    m2 = centered.T @ centered if moments.m2.ndim == 2 else centered.square().sum(0)
    assert moments.count == len(rows)
    torch.testing.assert_close(moments.mean, rows.mean(0), rtol=1e-6, atol=1e-6)
    rounding = 2 * torch.finfo(torch.float32).eps * float(rows.abs().max())  # of a mean, hence of every deviation
    torch.testing.assert_close(moments.m2, m2, rtol=1e-4, atol=1e-4 + rounding * float(centered.abs().sum(0).max()))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) > 0),
    offset=st.floats(-300, 300),
    covariance=st.booleans(),
    seed=st.integers(0, 1000),
)
@example(sizes=[1, 2, 2], offset=257.0, covariance=True, seed=101)
def test_merged_parts_equal_the_whole(sizes: list[int], offset: float, covariance: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n, 3, 4, generator=generator) * 3 + offset for n in sizes]
    merged = measure(parts[0], covariance)
    for part in parts[1:]:
        merged = merge(merged, measure(part, covariance))
    _assert_moments(merged, torch.cat(parts))


def test_covariance_of_many_rows_is_summed_in_parts() -> None:
    x = torch.randn(40_000, 3) @ torch.randn(3, 3) + 5
    variance = measure(x, covariance=True).variance
    torch.testing.assert_close(variance, torch.cov(x.double().T), rtol=1e-5, atol=1e-5)


def test_autocast_does_not_touch_the_covariance() -> None:
    x = torch.randn(64, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = measure(x, covariance=True)
    assert torch.equal(inside.m2, measure(x, covariance=True).m2)


def test_variance_is_unbiased_and_finite_for_one_vector() -> None:
    x = torch.randn(7, 3)
    torch.testing.assert_close(measure(x).variance, x.double().var(0), rtol=1e-5, atol=1e-6)
    assert torch.equal(measure(x[:1]).variance, torch.zeros(3, dtype=torch.float64))
