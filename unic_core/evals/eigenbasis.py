"""Features in the eigenbasis of their centered Gram matrix, where the Hessian of a classifier is nearly diagonal."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Eigenbasis(NamedTuple):
    """Rotated features and the way there and back.

    z [n, R + 1] float32: coordinates in the eigenbasis, and a column of ones for the intercept.
    penalty [R + 1] float32: ones, and zero for the intercept.
    """

    z: Tensor
    penalty: Tensor
    vectors: Tensor  # [D, R] float64, orthonormal columns
    mean: Tensor  # [D] float64

    def enter(self, weight: Tensor, bias: Tensor) -> Tensor:
        """theta [K, R + 1] of a weight [D, K] and bias [K]."""
        weight = weight.double()
        return torch.cat([self.vectors.T @ weight, (bias + self.mean @ weight)[None]]).T.float().contiguous()

    def leave(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """weight [P, D, K] and bias [P, K], float32, of theta [P, K, R + 1]."""
        weight = self.vectors @ theta[:, :, :-1].double().mT
        bias = theta[:, :, -1].double() - self.mean @ weight
        return weight.float(), bias.float()


def eigenbasis(x: Tensor) -> Eigenbasis:
    """Eigenbasis of the centered Gram matrix, by way of its smaller side."""
    x = x.double()
    mean = x.mean(0)
    x = x - mean
    n, d = x.shape
    if d <= n:
        _, vectors = torch.linalg.eigh(x.T @ x)
        z = x @ vectors
    else:
        eigenvalues, left = torch.linalg.eigh(x @ x.T)
        span = eigenvalues > eigenvalues[-1] * d * torch.finfo(torch.float64).eps
        eigenvalues, left = eigenvalues[span], left[:, span]
        vectors = x.T @ left / eigenvalues.sqrt()
        z = left * eigenvalues.sqrt()
    one = torch.ones(1, dtype=x.dtype, device=x.device)
    return Eigenbasis(
        z=torch.cat([z, one.expand(n, 1)], 1).float(),
        penalty=torch.cat([one.expand(z.shape[1]), 0 * one]).float(),
        vectors=vectors,
        mean=mean,
    )
