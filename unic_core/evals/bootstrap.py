"""Confidence intervals for accuracies."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from unic_core.errors import UnicError

RESAMPLES = 10_000


def bootstrap_accuracy(correct: Tensor, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the accuracy over test images.

    Drawing n of n images with replacement gives multinomial numbers of images with each count of correct answers, so
    the resamples are drawn from that distribution directly: the same interval at no cost. Where every image is right
    (or wrong) all resamples agree and the interval has no width.

    Args:
        correct: [n] bool, or [S, n] of S classifiers: then an image counts with the share that is correct.
        seed: of the resamples. level: coverage.

    Raises:
        UnicError: no test images.
    """
    correct = correct[None] if correct.ndim == 1 else correct
    answers, n = correct.shape
    if n == 0:
        raise UnicError("there are no test images to score; check the test split")
    images = torch.bincount(correct.sum(0), minlength=answers + 1).double().flip(0).numpy()  # S correct, ..., none
    drawn = np.random.default_rng(seed).multinomial(n, images / n, RESAMPLES)
    accuracy = drawn @ np.arange(answers, -1, -1) / (answers * n)
    low, high = np.quantile(accuracy, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
