"""Weighted k-nearest-neighbor classification on L2-normalized features (section 3.2, after DINO)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from unic_core.errors import UnicError

SIMILARITIES = 2**26  # numbers per block of test x train similarities and of votes


def classify_knn(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    ks: Sequence[int],
    temperature: float,
    classes: int,
) -> dict[int, Tensor]:
    """Predictions [n_test] int64 for every k.

    The k nearest training images by cosine similarity s vote exp(s / temperature) for their class; ties go to the
    smaller class number. All k come from one search: votes of the nearest accumulate. A k beyond the number of
    training images means all of them.

    Args:
        train_x: [n, D]. train_y: [n] int64 in [0, classes). test_x: [m, D], on the same device.

    Raises:
        UnicError: no training images, widths that differ, a k or temperature that isn't positive.
    """
    if len(train_x) == 0 or train_x.shape[1] != test_x.shape[1]:
        raise UnicError(f"kNN cannot compare train features {list(train_x.shape)} with {list(test_x.shape)}")
    if not ks or min(ks) <= 0 or temperature <= 0:
        raise UnicError(f"kNN needs positive k and temperature, not {list(ks)} and {temperature}")
    train = F.normalize(train_x.float(), dim=1)
    rising = sorted(set(ks))
    nearest = min(rising[-1], len(train))
    predictions: dict[int, list[Tensor]] = {k: [] for k in rising}
    for block in torch.split(test_x, max(1, SIMILARITIES // max(len(train), classes))):
        similarity = F.normalize(block.float(), dim=1) @ train.T
        score, index = similarity.topk(nearest, dim=1)  # nearest first
        weight = ((score - score[:, :1]).double() / temperature).exp()  # a common factor: no overflow
        votes = torch.zeros(len(block), classes, dtype=torch.float64, device=block.device)
        done = 0
        for k in rising:
            upto = min(k, nearest)
            votes.scatter_add_(1, train_y[index[:, done:upto]], weight[:, done:upto])
            predictions[k].append(votes.argmax(1))
            done = upto
    return {k: torch.cat(parts) if parts else test_x.new_zeros(0).long() for k, parts in predictions.items()}
