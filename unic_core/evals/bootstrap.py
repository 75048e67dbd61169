"""Confidence intervals for accuracies."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from unic_core.errors import UnicError

RESAMPLES = 10_000


def bootstrap_accuracy(correct: Tensor, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the accuracy over test images.

    Drawing n of n images with replacement gives a binomial number of correct ones, so the resamples are drawn from
    that distribution directly: the same interval at no cost. Where every image is right (or wrong) all
    resamples agree and the interval has no width.

    Args:
        correct: [n] bool. seed: of the resamples. level: coverage.

    Raises:
        UnicError: no test images.
    """
    n = len(correct)
    if n == 0:
        raise UnicError("there are no test images to score; check the test split")
    hits = np.random.default_rng(seed).binomial(n, float(correct.double().mean()), RESAMPLES)
    low, high = np.quantile(hits / n, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
