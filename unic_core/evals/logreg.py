"""Multinomial logistic regression at many regularization strengths at once.

The objective is scikit-learn's, C * sum of cross-entropies + ||W||^2 / 2 with a free intercept, for every C of
a grid (always the softmax form; with two classes scikit-learn switches to the binary form, whose C counts half).
What makes it fast:

- The values of C form a path: each starts where a line through the last two solutions (in log C) leads, and with
  what L-BFGS has learned of the Hessian at the last one. Gaps of more than a power of ten are bridged. With few
  classes neighbors on the path share each matrix product instead, and a C that has converged leaves the batch.
- Features are rotated into the eigenbasis of their centered Gram matrix. There the Hessian is close to its diagonal
  but for the leading directions, where all classes are coupled: this approximation is computed now and then and is
  the starting matrix of L-BFGS. The penalty doesn't notice a rotation, so the optimum is the same. With fewer
  images than features only their span is kept.
- Logits are linear in the weights: an iteration costs two matrix products, however long its line search is.
- Cross-entropy is computed from margins (logit minus logit of the true class), which keeps its relative precision
  in float32 where it is tiny. A C that float32 can't finish is finished in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unic_core.errors import UnicError
from unic_core.evals.inverse_hessian import Pairs
from unic_core.evals.lbfgs import Solution, minimize
from unic_core.evals.softmax import Design, cross_entropy, dot, per_c, thinned

LOGITS = 2**26  # numbers per buffer of margins
SAMPLE, LEAST = 2, 2048  # images per feature, and images, that the eigenbasis is taken from: it need not be exact
NEAR = 1.01  # powers of ten between two C up to which the second begins with the pairs of the first
FIRST, STRIDE = 1e-3, 10.0  # largest C that is solved from zeros, and the longest way from one C to the next: where
# many weights fit the training images almost perfectly, a solver that comes from afar ends at far too large ones
NEARLY = 1 + 1e-6  # what rounding leaves of a power of ten
GROUP = 10  # columns of weights that make a matrix product efficient: C are fitted side by side up to this number


@dataclass(frozen=True)
class LogisticRegression:
    """Fitted models, one per C, in the order of `c_values`.

    weight [P, D, K] and bias [P, K] float32, objective [P] float64 at the solution, iterations [P] int64,
    converged [P] bool (False: `max_iterations` came first).
    """

    c_values: tuple[float, ...]
    weight: Tensor
    bias: Tensor
    objective: Tensor
    iterations: Tensor
    converged: Tensor

    def predict(self, x: Tensor) -> Tensor:
        """Class numbers [P, n] int64 of features [n, D]."""
        return torch.stack([(x @ w + b).argmax(1) for w, b in zip(self.weight, self.bias, strict=True)])


def fit_logreg(
    x: Tensor,
    y: Tensor,
    c_values: Sequence[float],
    classes: int,
    max_iterations: int = 2000,
    start: tuple[Tensor, Tensor] | None = None,
) -> LogisticRegression:
    """Fit one model per C, on the device of `x`; the same input gives the same result.

    Args:
        x: features [n, D]. y: class numbers [n] int64 in [0, classes).
        c_values: inverse regularization strengths, in any order.
        max_iterations: of L-BFGS, per C.
        start: weight [D, K] and bias [K] of a similar problem to start from. Without it a C above FIRST is reached
            through smaller ones, whose iterations are not reported.

    Raises:
        UnicError: fewer than two classes, labels out of range, values that are not finite.
    """
    return PathSolver(Eigenbasis.of(x), y, classes, max_iterations).fit(c_values, start)


class PathSolver:
    """Logistic regression on one training set, for values of C that may come bit by bit.

    Every fit starts from the solutions so far.
    """

    def __init__(self, basis: Eigenbasis, y: Tensor, classes: int, max_iterations: int = 2000) -> None:
        """`basis` holds the features of the images with class numbers y [n]; errors as in `fit_logreg`."""
        _check(basis, y, classes)
        self._basis = basis
        self._design = Design(basis.z, basis.z.square(), y, basis.penalty, classes)
        self._together = max(1, min(GROUP // classes, LOGITS // (len(y) * classes)))
        self._path, self._max_iterations = _Path(), max_iterations
        self._last: tuple[Tensor, Pairs] | None = None

    def fit(self, c_values: Sequence[float], start: tuple[Tensor, Tensor] | None = None) -> LogisticRegression:
        """One model per C, in the order of `c_values`, all positive; `start` and errors as in `fit_logreg`."""
        if not c_values or min(c_values) <= 0:
            raise UnicError("logistic regression needs at least one C, all of them positive")
        given = None if start is None else self._basis.enter(*start)
        rising = torch.tensor(c_values, dtype=torch.float64, device=self._design.z.device).sort()
        solutions = []
        for group in _groups(rising.values.tolist(), self._together):
            for c in [] if given is not None else self._path.way_to(group[0]):
                self._solve(rising.values.new_tensor([c]), None)
            solutions.append(self._solve(rising.values.new_tensor(group), given))
        back = rising.indices.argsort()
        weight, bias = self._basis.leave(torch.cat([s.theta for s in solutions])[back])
        return LogisticRegression(
            c_values=tuple(c_values),
            weight=weight,
            bias=bias,
            objective=torch.cat([s.objective for s in solutions])[back].cpu(),
            iterations=torch.cat([s.iterations for s in solutions])[back].cpu(),
            converged=torch.cat([s.converged for s in solutions])[back].cpu(),
        )

    def _solve(self, c: Tensor, given: Tensor | None) -> Solution:
        start = _start(self._design, c, given, self._path)
        pairs = None if self._last is None else _pairs(self._design, c, *self._last)
        found = _solve(self._design, c, start, self._max_iterations, pairs or Pairs.none(start))
        self._path.add(c, found.theta)
        self._last = c, found.pairs
        return found


def objective(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, c_values: Sequence[float]) -> Tensor:
    """C * sum of cross-entropies + ||W||^2 / 2 in float64, [P], of weight [P, D, K] and bias [P, K]."""
    values = []
    for c, w, b in zip(c_values, weight.double(), bias.double(), strict=True):
        loss = w.new_zeros(())
        for part, labels in zip(torch.split(x, 2**14), torch.split(y, 2**14), strict=True):
            loss += F.cross_entropy(part.double() @ w + b, labels, reduction="sum")
        values.append(c * loss + w.square().sum() / 2)
    return torch.stack(values)


def _check(basis: Eigenbasis, y: Tensor, classes: int) -> None:
    n = basis.z.shape[1]
    if y.shape != (n,):
        raise UnicError(f"features must be [n, D] and labels [n], not {n} rows and {list(y.shape)}")
    if classes < 2 or n == 0:
        raise UnicError(f"logistic regression needs at least two classes and an image, not {classes} and {n}")
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise UnicError(f"labels must lie in 0..{classes - 1}, not {int(y.min())}..{int(y.max())}")


# ---------------------------------------------------------------- change of basis


class Eigenbasis(NamedTuple):
    """Rotated features and the way there and back.

    Any orthonormal basis gives the same optimum, and any mean, because the intercept is free. So the basis of all
    images serves a part of them as well.

    z [R + 1, n] float32: coordinates in the eigenbasis, and a row of ones for the intercept.
    penalty [R + 1] float32: ones, and zero for the intercept.
    """

    z: Tensor
    penalty: Tensor
    vectors: Tensor  # [D, R] float64, orthonormal columns
    mean: Tensor  # [D] float64

    @classmethod
    def of(cls, x: Tensor) -> Eigenbasis:
        """Basis of features x [n, D]; UnicError when some are not finite."""
        if x.ndim != 2:
            raise UnicError(f"features must be [n, D], not {list(x.shape)}")
        if not bool(x.isfinite().all()):
            raise UnicError("some features are not finite; look for NaN or overflow in the model that made them")
        return _eigenbasis(x)

    def take(self, chosen: Tensor) -> Eigenbasis:
        """Only some images, [n] bool."""
        return self._replace(z=self.z[:, chosen])

    def enter(self, weight: Tensor, bias: Tensor) -> Tensor:
        """theta [K, R + 1] of a weight [D, K] and bias [K]."""
        weight = weight.double()
        return torch.cat([self.vectors.T @ weight, (bias + self.mean @ weight)[None]]).T.float().contiguous()

    def leave(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """weight [P, D, K] and bias [P, K], float32, of theta [P, K, R + 1]."""
        rotated = theta[:, :, :-1].double().flatten(0, 1) @ self.vectors.T  # one product: batched ones are slow
        weight = rotated.view(*theta.shape[:2], -1).mT.contiguous()
        bias = theta[:, :, -1].double() - self.mean @ weight
        return weight.float(), bias.float()


def _eigenbasis(x: Tensor) -> Eigenbasis:
    """Eigenbasis of the centered Gram matrix, by way of its smaller side."""
    mean = x.mean(0, dtype=torch.float64)
    x = x.float() - mean.float()
    mean = mean.float().double()  # exactly what was subtracted
    n, d = x.shape
    if d <= n:
        some = x[thinned(n, max(SAMPLE * d, LEAST)).to(x.device)]
        _, vectors = torch.linalg.eigh(some.T @ some)
        z = vectors.T @ x.T
        vectors = vectors.double()
    else:
        double = x.double()
        eigenvalues, left = torch.linalg.eigh(double @ double.T)
        span = eigenvalues > eigenvalues[-1] * d * torch.finfo(torch.float64).eps
        eigenvalues, left = eigenvalues[span], left[:, span]
        vectors = double.T @ left / eigenvalues.sqrt()
        z = (left * eigenvalues.sqrt()).T.float().contiguous()
    one = torch.ones(1, device=x.device)
    return Eigenbasis(
        z=torch.cat([z, one.expand(1, n)]),
        penalty=torch.cat([one.expand(len(z)), 0 * one]),
        vectors=vectors,
        mean=mean,
    )


# ---------------------------------------------------------------- along the path of C


def _groups(rising: Sequence[float], most: int) -> list[list[float]]:
    """Neighboring C that are fitted side by side: `most` of them, and no further apart than one may come from."""
    groups: list[list[float]] = []
    for c in rising:
        if groups and len(groups[-1]) < most and c <= NEARLY * STRIDE * groups[-1][0]:
            groups[-1].append(c)
        else:
            groups.append([c])
    return groups


def _pairs(design: Design, c: Tensor, before: Tensor, pairs: Pairs) -> Pairs | None:
    """What the last steps at `before` [1] say about the Hessian at c [1]; nothing for C side by side or far apart."""
    if len(c) > 1 or len(before) > 1 or float((c / before).log10().abs()) > NEAR:
        return None
    return pairs.at(design.penalty, c / before)


def _solve(design: Design, c: Tensor, theta: Tensor, max_iterations: int, pairs: Pairs) -> Solution:
    """float32 for all C; those it can't bring to the tolerance go on in float64."""
    first = minimize(design, c, theta, max_iterations, pairs)
    left = (~first.converged & (first.iterations < max_iterations)).nonzero()[:, 0]
    if len(left) == 0:
        return first
    budget = max_iterations - int(first.iterations[left].min())
    start = first.theta[left].double()
    more = minimize(design.double(), c[left], start, budget, Pairs.none(start))
    return first._replace(
        theta=first.theta.index_copy(0, left, more.theta.float()),
        objective=first.objective.index_copy(0, left, more.objective),
        iterations=first.iterations.index_add(0, left, more.iterations),
        converged=first.converged.index_copy(0, left, more.converged),
    )


def _start(design: Design, c: Tensor, given: Tensor | None, path: _Path) -> Tensor:
    """Where to start for every C, [P, K, R + 1]: the best of zeros, `given` [K, R + 1] and what the path suggests."""
    starts = [theta.expand(len(c), -1, -1) for theta in ([] if given is None else [given])]
    starts += path.guesses(c)
    best = design.penalty.new_zeros(len(c), design.classes, len(design.penalty))
    value = c * len(design.y) * math.log(design.classes)
    for start in starts:
        loss, _ = cross_entropy(design.margins(start, own=-torch.inf))
        other = c * loss + dot(start * design.penalty, start) / 2
        best = torch.where(per_c(other < value, best) > 0, start, best)
        value = torch.minimum(value, other)
    return best


class _Path:
    """The solutions so far, by rising C: between neighbors the weights move nearly along a line in log C."""

    def __init__(self) -> None:
        self._points: dict[float, Tensor] = {}

    def add(self, c: Tensor, theta: Tensor) -> None:
        """Remember the solutions theta [P, K, R + 1] at c [P]."""
        self._points.update(zip(c.log().tolist(), theta, strict=True))

    def way_to(self, c: float) -> list[float]:
        """The C to be solved before `c`, rising: none where a solution is near, or near enough to zeros."""
        known = [math.exp(point) for point in self._points]
        if any(max(c / k, k / c) <= NEARLY * STRIDE for k in known):
            return []
        way = [max([FIRST, *(STRIDE * k for k in known if k < c)])]
        while STRIDE * way[-1] * NEARLY < c:
            way.append(STRIDE * way[-1])
        return way if way[-1] * NEARLY < c else []

    def guesses(self, c: Tensor) -> list[Tensor]:
        """Starting points [P, K, R + 1] for c [P]: the nearest solution, and the line through the nearest two."""
        if not self._points:
            return []
        nearest, line = [], []
        for at in c.log().tolist():
            near, *others = sorted(self._points, key=lambda point: abs(point - at))
            new = self._points[near]
            nearest.append(new)
            line.append(new + (at - near) / (near - others[0]) * (new - self._points[others[0]]) if others else new)
        return [torch.stack(nearest)] if len(self._points) == 1 else [torch.stack(nearest), torch.stack(line)]
