"""What L-BFGS knows of the inverse Hessian: an approximation at one point, corrected by the steps taken since.

The compact form (Byrd, Nocedal & Schnabel 1994, equation 3.1) stands in for the two loops over the steps: the same
matrix up to rounding, from a few products with all of them at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unic_core.evals.curvature import Curvature
from unic_core.evals.softmax import dot, per_c

MEMORY = 20  # pairs of steps and gradient differences that are remembered


class Pairs(NamedTuple):
    """The last `MEMORY` steps, in a ring; one without positive curvature is a slot of zeros, and teaches nothing.

    steps, changes (of the gradient) [P, MEMORY, K * (R + 1)]. written: so far.
    """

    steps: Tensor
    changes: Tensor
    written: int

    @classmethod
    def none(cls, theta: Tensor) -> Pairs:
        """No steps yet, for weights [P, K, R + 1]."""
        empty = theta.new_zeros(len(theta), MEMORY, theta[0].numel())
        return cls(empty, empty.clone(), 0)

    def at(self, penalty: Tensor, ratio: Tensor) -> Pairs:
        """The same steps at C `ratio` [P] times as large: the gradient of the loss is in proportion to C."""
        penalized = (self.steps.view(*self.steps.shape[:2], -1, len(penalty)) * penalty).flatten(2)
        changes = torch.addcmul(penalized, per_c(ratio, penalized), self.changes - penalized)
        keep = torch.linalg.vecdot(self.steps, changes)[:, :, None] > 0
        return self._replace(steps=self.steps * keep, changes=changes * keep)

    def take(self, chosen: Tensor) -> Pairs:
        """Only some C, [P] bool."""
        return self._replace(steps=self.steps[chosen], changes=self.changes[chosen])


class InverseHessian:
    """The inverse Hessian of P values of C; `learn` writes into the tensors of the `pairs` it was made of.

    As in the paper, s is a step, y a change of the gradient and H the starting matrix: `_hy` [P, M, F] is H times every
    change, and `_sy` and `_yhy` [P, M, M] float64 are the inner products <s, y> and <y, H y>; those of `_sy` with an
    older change are not kept up to date, nor needed.
    """

    def __init__(self, curvature: Curvature, pairs: Pairs) -> None:
        self.curvature, self.pairs = curvature, pairs
        changes = [change.view_as(curvature.diagonal) for change in pairs.changes.unbind(1)]
        self._hy = torch.stack([curvature.apply(change).flatten(1) for change in changes], 1)
        self._sy = (pairs.steps @ pairs.changes.mT).double()
        self._yhy = (self._hy @ pairs.changes.mT).double()

    def learn(self, step: Tensor, change: Tensor) -> None:
        """Remember a step and the change of the gradient, [P, K, R + 1]; zeros where the curvature isn't positive."""
        keep = per_c(dot(step, change) > 0, step)
        step, change = keep * step, keep * change
        steps, changes, written = self.pairs
        slot = written % MEMORY
        y = change.flatten(1)
        steps[:, slot], changes[:, slot] = step.flatten(1), y
        self._hy[:, slot] = self.curvature.apply(change).flatten(1)
        self._sy[:, :, slot] = _each(steps, y)
        self._yhy[:, :, slot] = self._yhy[:, slot] = _each(self._hy, y)
        self.pairs = self.pairs._replace(written=written + 1)

    def apply(self, gradient: Tensor) -> Tensor:
        """The inverse Hessian times `gradient` [P, K, R + 1]."""
        written, g = self.pairs.written, gradient.flatten(1)
        result = self.curvature.apply(gradient)
        if written == 0:
            return result
        oldest, newest = written % MEMORY, (written - 1) % MEMORY
        fit = self._sy[:, newest, newest] / self._yhy[:, newest, newest]
        fit = torch.where(fit.isfinite() & (fit > 0), fit, 1.0)[:, None]  # scales the approximation to the last change
        sy, yhy = (m.roll((-oldest, -oldest), (1, 2)) for m in (self._sy, self._yhy))
        own = sy.diagonal(dim1=1, dim2=2)
        upper = sy.triu(1) + torch.where(own > 0, own, 1.0).diag_embed()  # an empty slot must not make it singular
        u, v = _each(self.pairs.steps, g).roll(-oldest, 1), _each(self._hy, g).roll(-oldest, 1)
        w = torch.linalg.solve_triangular(upper, u[:, :, None], upper=True)[:, :, 0]
        right = own * w + fit * (_each(yhy, w) - v)
        p = torch.linalg.solve_triangular(upper.mT, right[:, :, None], upper=False)[:, :, 0]
        flat = fit.to(g.dtype) * result.flatten(1) + _sum(p.roll(oldest, 1), self.pairs.steps)
        return (flat - _sum((fit * w).roll(oldest, 1), self._hy)).view_as(gradient)

    def take(self, chosen: Tensor) -> InverseHessian:
        """Only some C, [P] bool."""
        return InverseHessian(self.curvature.take(chosen), self.pairs.take(chosen))


def _each(vectors: Tensor, vector: Tensor) -> Tensor:
    """Inner products [P, M] float64 of vectors [P, M, F] with one [P, F]."""
    return (vectors @ vector[:, :, None])[:, :, 0].double()


def _sum(weights: Tensor, vectors: Tensor) -> Tensor:
    """Sum [P, F] of vectors [P, M, F] with weights [P, M]."""
    return (weights.to(vectors.dtype)[:, None] @ vectors)[:, 0]
