"""Orthogonal matrices that spread every input evenly over all outputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SYLVESTER = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)


def hadamard(n: int) -> Tensor:
    """An orthogonal matrix [n, n], float64, whose entries are all +-1/sqrt(n) where we know such a matrix.

    Powers of two are Sylvester's; other orders are one of Paley's times those: 12 (192, 384, 768, 1536),
    20 (320, 640, 1280), 28 (1792), 36 (1152), 44 (1408), ... For any other n (odd, 6, 10, ...) no Hadamard
    matrix exists or these constructions do not reach it, and the discrete Hartley matrix is returned:
    orthogonal too, but its squared entries lie between 0 and 2/n, so that it spreads only about evenly.
    """
    signs = _signs(n)
    if signs is not None:
        return signs / math.sqrt(n)
    index = torch.arange(n, dtype=torch.float64)
    # the product modulo n keeps the angle small, hence exact
    angle = torch.outer(index, index).remainder(n) * (2 * math.pi / n)
    return (angle.cos() + angle.sin()) / math.sqrt(n)


def _signs(n: int) -> Tensor | None:
    """A Hadamard matrix of +-1, built on the smallest core that divides n by a power of two."""
    if n == 1:
        return torch.ones((1, 1), dtype=torch.float64)
    if n % 2:
        return None
    half = _signs(n // 2)
    return _paley(n) if half is None else torch.kron(_SYLVESTER, half)


def _paley(n: int) -> Tensor | None:
    """Paley's first construction (n - 1 a prime 3 mod 4) or second (n/2 - 1 a prime 1 mod 4), or None."""
    if _is_prime(n - 1) and (n - 1) % 4 == 3:
        return torch.eye(n, dtype=torch.float64) + _bordered(n - 1, corner=-1.0)
    q = n // 2 - 1
    if n % 2 == 0 and _is_prime(q) and q % 4 == 1:
        conference = _bordered(q, corner=1.0)
        diagonal = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return torch.kron(conference, _SYLVESTER) + torch.kron(torch.eye(q + 1, dtype=torch.float64), diagonal)
    return None


def _bordered(q: int, corner: float) -> Tensor:
    """[[0, 1], [corner, Q]], Q_ij being 0 for i = j, 1 if i - j is a square modulo q, else -1."""
    character = -torch.ones(q, dtype=torch.float64)
    index = torch.arange(q)
    character[index.square() % q] = 1.0
    character[0] = 0.0
    matrix = torch.zeros((q + 1, q + 1), dtype=torch.float64)
    matrix[0, 1:] = 1.0
    matrix[1:, 0] = corner
    matrix[1:, 1:] = character[(index[:, None] - index[None, :]) % q]
    return matrix


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))
