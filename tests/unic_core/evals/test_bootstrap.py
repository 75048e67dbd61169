"""The interval against resampling image by image, and its properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unic_core.errors import UnicError
from unic_core.evals.bootstrap import bootstrap_accuracy


def test_equals_the_bootstrap_over_images() -> None:
    correct = torch.arange(400) < 300
    low, high = bootstrap_accuracy(correct, seed=0)
    rng = np.random.default_rng(1)
    means = correct.numpy()[rng.integers(0, 400, (10_000, 400))].mean(1)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.003)


@given(n=st.integers(1, 500), share=st.floats(0, 1), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=50, deadline=None)
def test_interval_holds_the_accuracy_and_is_deterministic(n: int, share: float, seed: int) -> None:
    correct = torch.arange(n) < round(share * n)
    low, high = bootstrap_accuracy(correct, seed)
    assert 0 <= low <= correct.double().mean() <= high <= 1
    assert (low, high) == bootstrap_accuracy(correct.flip(0), seed)


def test_more_images_and_less_coverage_narrow_it() -> None:
    def width(n: int, level: float) -> float:
        low, high = bootstrap_accuracy(torch.arange(n) % 4 > 0, seed=0, level=level)
        return high - low

    assert width(10_000, 0.95) < width(100, 0.95) / 5
    assert width(1000, 0.5) < width(1000, 0.95)


def test_several_classifiers_are_resampled_image_by_image() -> None:
    correct = torch.rand(3, 300, generator=torch.Generator().manual_seed(0)) < torch.linspace(0.2, 1, 300)
    low, high = bootstrap_accuracy(correct, seed=0)
    rng = np.random.default_rng(1)
    means = correct.numpy()[:, rng.integers(0, 300, (10_000, 300))].mean((0, 2))
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.004)
    assert bootstrap_accuracy(correct[:1].expand(3, -1), seed=0) == bootstrap_accuracy(correct[0], seed=0)


def test_no_images_are_refused() -> None:
    with pytest.raises(UnicError, match="no test images"):
        bootstrap_accuracy(torch.zeros(0, dtype=torch.bool), seed=0)
