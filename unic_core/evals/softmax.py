"""The objective of multinomial logistic regression for several C at once, in terms of margins.

A margin is a logit minus the logit of the true class: the cross-entropy computed from margins keeps its relative
precision in float32 where it is tiny.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST, LOWEST = 1e-30, -70.0  # below it a probability, or the margin it comes from, counts as 0: subnormal
# numbers would slow a matrix product down by an order of magnitude
SLICES = 4  # of the images, in products with few rows: BLAS spreads several of them over the cores better than one


class Design(NamedTuple):
    """What all values of C have in common; names and shapes as in `Eigenbasis`, squares = z * z, y [n] int64."""

    z: Tensor
    squares: Tensor
    y: Tensor
    penalty: Tensor
    classes: int

    def double(self) -> Design:
        return Design(self.z.double(), self.squares.double(), self.y, self.penalty.double(), self.classes)

    def margins(self, theta: Tensor, own: float) -> Tensor:
        """Logits minus the true class's logit, [P, K, n], with `own` written at the true class."""
        logits = _times(theta.flatten(0, 1), self.z).view(*theta.shape[:2], -1)
        index = self.y.expand(len(theta), 1, -1)
        return (logits - logits.gather(1, index)).scatter_(1, index, own)

    def gradient(self, theta: Tensor, wrong: Tensor, c: Tensor) -> Tensor:
        """[P, K, R + 1] from the probabilities of the wrong classes [P, K, n]."""
        index = self.y.expand(len(theta), 1, -1)
        residual = wrong.scatter(1, index, -wrong.sum(1, keepdim=True))
        product = _times_transposed(residual.flatten(0, 1), self.z).view_as(theta)
        return product.mul_(per_c(c, theta)).addcmul_(self.penalty, theta)

    def inverse_diagonal(self, wrong: Tensor, c: Tensor) -> Tensor:
        """Inverse of the Hessian's diagonal, [P, K, R + 1]."""
        index = self.y.expand(len(wrong), 1, -1)
        error = wrong.sum(1, keepdim=True)
        spread = wrong * (1 - wrong)
        spread.scatter_(1, index, error * (1 - error))
        curvature = (spread.flatten(0, 1) @ self.squares.T).view(*wrong.shape[:2], -1)
        return 1 / (curvature.mul_(per_c(c, wrong)).add_(self.penalty).clamp_min_(SMALLEST))


def _sliced(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of a matrix [m, n] as equal slices [SLICES, m, .] and those left over [m, less than SLICES]."""
    width = matrix.shape[1] // SLICES
    whole, rest = matrix.tensor_split([SLICES * width], 1)
    return whole.view(len(matrix), SLICES, width).transpose(0, 1), rest


def _times(a: Tensor, z: Tensor) -> Tensor:
    """a @ z of few rows [m, R] and many columns [R, n]."""
    slices, rest = _sliced(z)
    return torch.cat([torch.bmm(a.expand(SLICES, -1, -1), slices).transpose(0, 1).flatten(1), a @ rest], 1)


def _times_transposed(a: Tensor, z: Tensor) -> Tensor:
    """a @ z.T of few rows [m, n] and long ones [R, n]."""
    (left, left_rest), (right, right_rest) = _sliced(a), _sliced(z)
    return torch.bmm(left, right.mT).sum(0).addmm_(left_rest, right_rest.T)


def cross_entropy(margins: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over images of the cross-entropy, [P] float64, and probabilities of the wrong classes [P, K, n].

    `margins` [P, K, n] hold -inf at the true class.
    """
    top = margins.amax(1, keepdim=True).clamp_min(0)
    wrong = F.threshold((margins - top).clamp_min_(LOWEST).exp_(), SMALLEST, 0.0)
    excess = wrong.sum(1, keepdim=True) + torch.expm1(-top)  # 1 + excess is the sum over all classes
    loss = (top + excess.log1p()).sum((1, 2), dtype=torch.float64)
    return loss, wrong / (1 + excess)


def per_c(values: Tensor, like: Tensor) -> Tensor:
    """[P] as [P, 1, 1] in the dtype of `like`."""
    return values.to(like.dtype)[:, None, None]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per C: [P, ...] and [P, ...] to [P] float64."""
    products: Tensor = torch.linalg.vecdot(a.flatten(1), b.flatten(1))
    return products.double()


def thinned(n: int, most: int) -> Tensor:
    """Which of n images stand for all: all, or `most` of them, rising [.] int64; always the same ones.

    They are drawn, because images are often ordered by their class, or their classes take turns.
    """
    if n <= most:
        return torch.arange(n)
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:most].sort().values
