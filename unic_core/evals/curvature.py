"""An approximate inverse Hessian of multinomial logistic regression, the starting matrix of L-BFGS.

In the eigenbasis of the features the Hessian is close to its diagonal. What it lacks lies in the few directions of
largest variance, where classes are told apart and so depend on each other: there it is exact, for all classes jointly.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unic_core.evals.softmax import SMALLEST, Design, thinned

BLOCK = 320  # side of the exact block: leading directions (with the intercept) times classes
IMAGES = 2048  # that estimate the block; more are thinned out
RIDGE = 1e-5  # relative to the diagonal: keeps the block positive definite in float32


class Curvature(NamedTuple):
    """Inverse Hessian of P values of C.

    diagonal [P, K, R + 1]: inverse of the Hessian's diagonal. block [P, K * L, K * L]: inverse of the Hessian in the
    last L of the R + 1 coordinates; L may be 0.
    """

    diagonal: Tensor
    block: Tensor

    @classmethod
    def at(cls, design: Design, wrong: Tensor, c: Tensor) -> Curvature:
        """From the probabilities of the wrong classes [P, K, n] at the current weights; c [P]."""
        diagonal = design.inverse_diagonal(wrong, c)
        lead = min(BLOCK // design.classes, len(design.penalty))
        if lead < 2:
            return cls(diagonal, diagonal.new_zeros(len(c), 0, 0))
        return cls(diagonal, torch.stack([_block(design, w, float(v), lead) for w, v in zip(wrong, c, strict=True)]))

    def apply(self, vector: Tensor) -> Tensor:
        """Inverse Hessian times `vector` [P, K, R + 1]."""
        result = self.diagonal * vector
        lead = self.block.shape[1] // vector.shape[1]
        if lead:
            part = vector[:, :, -lead:].flatten(1)[:, :, None]
            result[:, :, -lead:] = (self.block @ part).view(*vector.shape[:2], lead)
        return result

    def take(self, chosen: Tensor) -> Curvature:
        """Only some C, [P] bool."""
        return Curvature(self.diagonal[chosen], self.block[chosen])


def _block(design: Design, wrong: Tensor, c: float, lead: int) -> Tensor:
    """Inverse of C * sum over images of (diag(p) - p p^T) x (z z^T) + penalty, [K * L, K * L].

    Where rounding leaves it indefinite (all images fitted almost perfectly), its diagonal will do.
    """
    n = len(design.y)
    chosen = thinned(n, IMAGES).to(design.y.device)
    z, y, wrong = design.z[-lead:, chosen], design.y[None, chosen], wrong[:, chosen]
    error = wrong.sum(0, keepdim=True)
    p = wrong.scatter(0, y, 1 - error)
    spread = (wrong * (1 - wrong)).scatter(0, y, error * (1 - error))  # p - p^2 would cancel where p is almost 1
    joint = (p[:, None] * z).flatten(0, 1)  # [K * L, images]
    hessian = -(joint @ joint.T).view(design.classes, lead, design.classes, lead)
    own = torch.arange(design.classes, device=z.device)
    hessian[own, :, own] = (spread[:, None] * z) @ z.T
    hessian = hessian.reshape(len(joint), len(joint)).mul_(c * n / len(chosen))
    hessian.diagonal().add_(design.penalty[-lead:].repeat(design.classes))
    scale = hessian.diagonal().clamp_min(SMALLEST).rsqrt()
    hessian = scale[:, None] * hessian * scale
    hessian.diagonal().add_(RIDGE)
    factor, info = torch.linalg.cholesky_ex(hessian)
    one = torch.eye(len(scale), dtype=scale.dtype, device=scale.device)
    inverse = torch.cholesky_inverse(torch.where(info == 0, factor, one))
    return scale[:, None] * inverse * scale
