"""Linear classifiers by SGD for large sets (section 3.1): many pairs of (lr, weight decay) in one pass over the data.

Every head sees the same batches, so that all of them share each matrix product. Features are L2-normalized, batches
hold 1,024 images, momentum is 0.9, and the learning rate falls along a cosine that is updated after each epoch:
epochs 0 and 1 both run at the full rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unic_core.errors import UnicError

MOMENTUM, BATCH = 0.9, 1024
LR, WEIGHT_DECAY = (0.1, 100.0), (1e-12, 1e-4)  # ranges of the search, log-uniform
LOGITS = 2**26  # numbers per buffer of logits or weights; more heads are trained in groups


@dataclass(frozen=True)
class Heads:
    """Linear classifiers on L2-normalized features: weight [H, K, D] and bias [H, K], float32."""

    weight: Tensor
    bias: Tensor

    def predict(self, x: Tensor) -> Tensor:
        """Class numbers [H, n] int64 of features [n, D]."""
        parts = [_logits(F.normalize(part.to(self.weight), dim=1), self.weight, self.bias).argmax(2)
                 for part in torch.split(x, BATCH)]  # fmt: skip
        return torch.cat(parts, 1)


def draw_settings(heads: int, seed: int) -> tuple[list[float], list[float]]:
    """Learning rates and weight decays of `heads` trials, log-uniform in the ranges of the protocol."""
    uniform = np.random.default_rng(seed).random((2, heads))

    def spread(row: np.ndarray[tuple[int], np.dtype[np.float64]], low: float, high: float) -> list[float]:
        values: list[float] = np.exp(math.log(low) + row * (math.log(high) - math.log(low))).tolist()
        return values

    return spread(uniform[0], *LR), spread(uniform[1], *WEIGHT_DECAY)


def learning_rate(lr: float, epoch: int, epochs: int) -> float:
    """Of one epoch: cosine to 0, updated after the epoch."""
    return lr / 2 * (1 + math.cos(math.pi * max(0, epoch - 1) / epochs))


def fit_heads(
    x: Tensor,
    y: Tensor,
    lrs: Sequence[float],
    weight_decays: Sequence[float],
    classes: int,
    epochs: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> Heads:
    """Train one head per pair of settings, from zeros; the same input gives the same result.

    Args:
        x: features [n, D], in any memory; batches travel to `device`. y: class numbers [n] int64 in [0, classes).
        lrs, weight_decays: [H] each. epochs: passes over the features. seed: of the order.

    Raises:
        UnicError: no images or heads, or all losses became infinite.
    """
    if len(x) == 0 or not lrs or len(lrs) != len(weight_decays):
        raise UnicError(
            f"the SGD probe needs images and pairs of settings, not {len(x)}, {len(lrs)} and {len(weight_decays)}"
        )
    group = max(1, LOGITS // (classes * max(min(BATCH, len(x)), x.shape[1])))
    parts = [
        _fit(x, y, lrs[i : i + group], weight_decays[i : i + group], classes, epochs, seed, torch.device(device))
        for i in range(0, len(lrs), group)
    ]
    heads = Heads(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))
    if not bool(heads.weight.isfinite().all((1, 2)).any()):
        raise UnicError("every head of the SGD probe diverged; look for huge or constant features")
    return heads


def _fit(
    x: Tensor, y: Tensor, lrs: Sequence[float], decays: Sequence[float], classes: int, epochs: int, seed: int,
    device: torch.device,
) -> Heads:  # fmt: skip
    count, width = len(lrs), x.shape[1]
    theta = torch.zeros(count, classes, width + 1, device=device)  # the bias is the last column
    velocity = torch.zeros_like(theta)
    decay = torch.tensor(decays, device=device)[:, None, None]
    rng = np.random.default_rng(seed)
    for epoch in range(epochs):
        rate = torch.tensor([learning_rate(lr, epoch, epochs) for lr in lrs], device=device)[:, None, None]
        for chosen in torch.split(torch.from_numpy(rng.permutation(len(x))), BATCH):
            rows = F.pad(F.normalize(x[chosen].to(device).float(), dim=1), (0, 1), value=1.0)
            labels = y[chosen].to(device)
            wrong = (rows @ theta.flatten(0, 1).T).view(len(rows), count, classes).softmax(2)
            wrong[torch.arange(len(rows), device=device), :, labels] -= 1
            gradient = (wrong.flatten(1).T @ rows).view_as(theta).div_(len(rows)).addcmul_(decay, theta)
            velocity.mul_(MOMENTUM).add_(gradient)
            theta.addcmul_(rate, velocity, value=-1)
    return Heads(theta[:, :, :-1].contiguous(), theta[:, :, -1].contiguous())


def _logits(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[H, n, K] of normalized features [n, D]."""
    return torch.baddbmm(bias[:, None], x.expand(len(weight), -1, -1), weight.mT)
