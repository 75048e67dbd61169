"""Multinomial logistic regression at many regularization strengths at once.

The objective is scikit-learn's, C * sum of cross-entropies + ||W||^2 / 2 with a free intercept, for every C of
a grid (always the softmax form; with two classes scikit-learn switches to the binary form, whose C counts half).
What makes it fast:

- All C share each matrix product, and a C that has converged leaves the batch.
- Features are rotated into the eigenbasis of their centered Gram matrix. There the Hessian at every C is close to
  the diagonal penalty + C * eigenvalue * curvature, whose inverse is the starting matrix of L-BFGS; `curvature` is
  the current mean of p * (1 - p), 1/K at first and tiny once the classes are separated. The penalty doesn't
  notice a rotation, so the optimum is the same. With fewer images than features only their span is kept.
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

TOLERANCE = 1e-6  # converged when half the Newton decrement is below this share of the objective, twice in a row
MEMORY = 10  # pairs of steps and gradient differences that L-BFGS remembers
LOGITS = 2**26  # numbers per buffer of margins; where the grid needs more, it is fitted in groups of C
REFRESH = 50  # iterations after which margins are computed afresh, against drift
SMALLEST, LOWEST = 1e-30, -70.0  # below it a probability, or the margin it comes from, counts as 0: subnormal
# numbers would slow a matrix product down by an order of magnitude
LINE_SEARCH = 25  # evaluations per line search; they are elementwise


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
        start: weight [D, K] and bias [K] of a similar problem to start from; zeros otherwise.

    Raises:
        UnicError: fewer than two classes, labels out of range, values that are not finite.
    """
    _check(x, y, c_values, classes)
    rising = torch.tensor(c_values, dtype=torch.float64, device=x.device).sort()
    basis = _eigenbasis(x)
    rows = len(basis.eigenvalues)
    theta = torch.zeros(rows, classes, device=x.device) if start is None else basis.enter(*start)
    design = _Design(basis.z, y, basis.eigenvalues, basis.penalty)
    solutions = []
    for c in torch.split(rising.values, max(1, LOGITS // (len(x) * classes))):
        solutions.append(_solve(design, c, _better_than_zeros(design, c, theta), max_iterations))
        theta = solutions[-1].theta[:, -1]  # the next group starts from the nearest smaller C
    back = rising.indices.argsort()
    weight, bias = basis.leave(torch.cat([s.theta for s in solutions], 1)[:, back])
    return LogisticRegression(
        c_values=tuple(c_values),
        weight=weight,
        bias=bias,
        objective=torch.cat([s.objective for s in solutions])[back].cpu(),
        iterations=torch.cat([s.iterations for s in solutions])[back].cpu(),
        converged=torch.cat([s.converged for s in solutions])[back].cpu(),
    )


def _check(x: Tensor, y: Tensor, c_values: Sequence[float], classes: int) -> None:
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise UnicError(f"features must be [n, D] and labels [n], not {list(x.shape)} and {list(y.shape)}")
    if not c_values or min(c_values) <= 0:
        raise UnicError("logistic regression needs at least one C, all of them positive")
    if classes < 2 or len(x) == 0:
        raise UnicError(f"logistic regression needs at least two classes and an image, not {classes} and {len(x)}")
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise UnicError(f"labels must lie in 0..{classes - 1}, not {int(y.min())}..{int(y.max())}")
    if not bool(x.isfinite().all()):
        raise UnicError("some features are not finite; look for NaN or overflow in the model that made them")


# ---------------------------------------------------------------- change of basis


class _Eigenbasis(NamedTuple):
    """Rotated features and the way there and back.

    z [n, R + 1] float32: coordinates in the eigenbasis, and a column of ones for the intercept.
    eigenvalues [R + 1] float32 of z'z; penalty [R + 1] float32: ones, and zero for the intercept.
    """

    z: Tensor
    eigenvalues: Tensor
    penalty: Tensor
    vectors: Tensor  # [D, R] float64, orthonormal columns
    mean: Tensor  # [D] float64

    def enter(self, weight: Tensor, bias: Tensor) -> Tensor:
        """theta [R + 1, K] of a weight [D, K] and bias [K]."""
        weight = weight.double()
        return torch.cat([self.vectors.T @ weight, (bias + self.mean @ weight)[None]]).float()

    def leave(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """weight [P, D, K] and bias [P, K], float32, of theta [R + 1, P, K]."""
        weight = torch.einsum("dr,rpk->pdk", self.vectors, theta[:-1].double())
        bias = theta[-1].double() - torch.einsum("d,pdk->pk", self.mean, weight)
        return weight.float(), bias.float()


def _eigenbasis(x: Tensor) -> _Eigenbasis:
    """Eigenbasis of the centered Gram matrix, by way of its smaller side."""
    x = x.double()
    mean = x.mean(0)
    x = x - mean
    n, d = x.shape
    if d <= n:
        eigenvalues, vectors = torch.linalg.eigh(x.T @ x)
        z = x @ vectors
    else:
        eigenvalues, left = torch.linalg.eigh(x @ x.T)
        span = eigenvalues > eigenvalues[-1] * d * torch.finfo(torch.float64).eps
        eigenvalues, left = eigenvalues[span], left[:, span]
        vectors = x.T @ left / eigenvalues.sqrt()
        z = left * eigenvalues.sqrt()
    one = torch.ones(1, dtype=x.dtype, device=x.device)
    return _Eigenbasis(
        z=torch.cat([z, one.expand(n, 1)], 1).float(),
        eigenvalues=torch.cat([eigenvalues.clamp_min(0), n * one]).float(),
        penalty=torch.cat([one.expand(z.shape[1]), 0 * one]).float(),
        vectors=vectors,
        mean=mean,
    )


# ---------------------------------------------------------------- the objective


class _Design(NamedTuple):
    """What all values of C have in common; names and shapes as in `_Eigenbasis`, y [n] int64."""

    z: Tensor
    y: Tensor
    eigenvalues: Tensor
    penalty: Tensor

    def double(self) -> _Design:
        return _Design(self.z.double(), self.y, self.eigenvalues.double(), self.penalty.double())

    def margins(self, theta: Tensor, own: float) -> Tensor:
        """Logits minus the true class's logit, [n, P, K], with `own` written at the true class."""
        rows, p, k = theta.shape
        logits = (self.z @ theta.reshape(rows, p * k)).view(-1, p, k)
        index = self.y.view(-1, 1, 1).expand(-1, p, 1)
        return (logits - logits.gather(2, index)).scatter_(2, index, own)

    def gradient(self, theta: Tensor, wrong: Tensor, c: Tensor) -> Tensor:
        """[R + 1, P, K] from the probabilities of the wrong classes [n, P, K]."""
        index = self.y.view(-1, 1, 1).expand(-1, wrong.shape[1], 1)
        residual = wrong.scatter(2, index, -wrong.sum(2, keepdim=True))
        product = (self.z.T @ residual.flatten(1)).view_as(theta)
        return c.to(theta.dtype)[None, :, None] * product + self.penalty[:, None, None] * theta

    def inverse_diagonal(self, wrong: Tensor, c: Tensor) -> Tensor:
        """Inverse of the Hessian's approximate diagonal, [R + 1, P, 1]."""
        error = wrong.sum(2)
        spread = (wrong * (1 - wrong)).sum(2) + error * (1 - error)
        curvature = (spread.mean(0) / wrong.shape[2]).clamp_min(1e-12)
        weight = c.to(curvature.dtype) * curvature
        return 1 / (self.penalty[:, None] + self.eigenvalues[:, None] * weight)[:, :, None]


def _cross_entropy(margins: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over images of the cross-entropy, [P] float64, and probabilities of the wrong classes [n, P, K].

    `margins` [n, P, K] hold -inf at the true class.
    """
    top = margins.amax(2, keepdim=True).clamp_min(0)
    wrong = F.threshold((margins - top).clamp_min_(LOWEST).exp_(), SMALLEST, 0.0)
    excess = wrong.sum(2, keepdim=True) + torch.expm1(-top)  # 1 + excess is the sum over all classes
    loss = (top + excess.log1p()).sum(0, dtype=torch.float64)
    return loss[:, 0], wrong / (1 + excess)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per C: [R, P, K] and [R, P, K] to [P] float64."""
    return (a * b).sum((0, 2)).double()


# ---------------------------------------------------------------- L-BFGS


class _Solution(NamedTuple):
    theta: Tensor  # [R + 1, P, K]
    objective: Tensor  # [P] float64
    iterations: Tensor  # [P] int64
    converged: Tensor  # [P] bool


class _Pair(NamedTuple):
    step: Tensor  # [R + 1, P, K]
    change: Tensor  # of the gradient, [R + 1, P, K]
    rho: Tensor  # 1 / <step, change>, or 0 where that isn't positive; [P]


def _solve(design: _Design, c: Tensor, theta: Tensor, max_iterations: int) -> _Solution:
    """float32 for all C; those it can't bring to the tolerance go on in float64."""
    first = _minimize(design, c, theta, max_iterations)
    left = (~first.converged & (first.iterations < max_iterations)).nonzero()[:, 0]
    if len(left) == 0:
        return first
    budget = max_iterations - int(first.iterations[left].min())
    more = _minimize(design.double(), c[left], first.theta[:, left].double(), budget)
    return _Solution(
        first.theta.index_copy(1, left, more.theta.float()),
        first.objective.index_copy(0, left, more.objective),
        first.iterations.index_add(0, left, more.iterations),
        first.converged.index_copy(0, left, more.converged),
    )


def _better_than_zeros(design: _Design, c: Tensor, theta: Tensor) -> Tensor:
    """theta [R + 1, K] for every C where it beats all zeros, else zeros: [R + 1, P, K]."""
    loss, _ = _cross_entropy(design.margins(theta[:, None], own=-torch.inf))
    penalty = (design.penalty[:, None] * theta.double().square()).sum() / 2
    better = c * loss + penalty < c * len(design.y) * math.log(theta.shape[1])
    return theta[:, None] * better[None, :, None].to(theta.dtype)


def _minimize(design: _Design, c: Tensor, theta: Tensor, max_iterations: int) -> _Solution:
    """L-BFGS for every C at once (Nocedal & Wright, algorithm 7.5), in the dtype of `theta`.

    A C leaves when it has converged, or when its line search finds no lower point at this precision.
    """
    total = len(c)
    out = _Solution(
        theta.clone(),
        torch.zeros_like(c),
        torch.zeros(total, dtype=torch.int64, device=c.device),
        torch.zeros(total, dtype=torch.bool, device=c.device),
    )
    live = torch.arange(total, device=c.device)
    margins = design.margins(theta, own=-torch.inf)
    loss, wrong = _cross_entropy(margins)
    objective = c * loss + _dot(theta * design.penalty[:, None, None], theta) / 2
    gradient = design.gradient(theta, wrong, c)
    pairs: list[_Pair] = []
    quiet = torch.zeros_like(live)  # how often in a row the decrement was small
    stuck = torch.zeros_like(live, dtype=torch.bool)
    for iteration in range(max_iterations + 1):
        direction = -_apply_inverse(gradient, design.inverse_diagonal(wrong, c), pairs)
        slope = _dot(gradient, direction)
        quiet = torch.where(-slope / 2 <= TOLERANCE * objective, quiet + 1, 0)
        done = (quiet >= 2) | stuck | (slope >= 0)
        if iteration == max_iterations:
            done = torch.ones_like(done)
        if bool(done.any()):
            gone, stay = live[done], ~done
            out.theta[:, gone] = theta[:, done]
            out.objective[gone] = objective[done]
            out.iterations[gone] = iteration
            out.converged[gone] = (quiet >= 1)[done]
            if bool(done.all()):
                break
            live, c, objective, slope, quiet = live[stay], c[stay], objective[stay], slope[stay], quiet[stay]
            theta, margins, gradient = theta[:, stay], margins[:, stay], gradient[:, stay]
            direction = direction[:, stay]
            pairs = [_Pair(p.step[:, stay], p.change[:, stay], p.rho[stay]) for p in pairs]
        line = _Line.along(design, theta, direction, margins, c)
        size, objective, stuck = _line_search(line, objective, slope)
        step = size.to(theta.dtype)[None, :, None] * direction
        theta = theta + step
        margins = design.margins(theta, own=-torch.inf) if (iteration + 1) % REFRESH == 0 else line.at(size)
        wrong = _cross_entropy(margins)[1]
        before, gradient = gradient, design.gradient(theta, wrong, c)
        inner = _dot(step, gradient - before)
        rho = torch.where(inner > 0, 1 / inner, 0.0)
        pairs = [*pairs[1 - MEMORY :], _Pair(step, gradient - before, rho)]
    return out


def _apply_inverse(gradient: Tensor, diagonal: Tensor, pairs: list[_Pair]) -> Tensor:
    """The two-loop recursion: an approximate inverse Hessian times the gradient, [R + 1, P, K]."""

    def scaled(factor: Tensor, tensor: Tensor) -> Tensor:
        return factor.to(tensor.dtype)[None, :, None] * tensor

    result, factors = gradient, []
    for pair in reversed(pairs):
        factors.append(pair.rho * _dot(pair.step, result))
        result = result - scaled(factors[-1], pair.change)
    result = diagonal * result
    if pairs:
        last = pairs[-1]
        fit = 1 / (last.rho * _dot(last.change, diagonal * last.change))
        result = scaled(torch.where(fit.isfinite(), fit, 1.0), result)
    for pair, factor in zip(pairs, reversed(factors), strict=True):
        result = result + scaled(factor - pair.rho * _dot(pair.change, result), pair.step)
    return result


class _Line(NamedTuple):
    """The objective along a direction: margins move linearly, the penalty is a parabola."""

    margins: Tensor  # [n, P, K], -inf at the true class
    moves: Tensor  # [n, P, K], 0 at the true class
    c: Tensor  # [P]; so are the coefficients of penalty(size) below
    constant: Tensor
    linear: Tensor
    square: Tensor

    @classmethod
    def along(cls, design: _Design, theta: Tensor, direction: Tensor, margins: Tensor, c: Tensor) -> _Line:
        penalized = design.penalty[:, None, None] * direction
        constant = _dot(design.penalty[:, None, None] * theta, theta) / 2
        moves = design.margins(direction, own=0.0)
        return cls(margins, moves, c, constant, _dot(penalized, theta), _dot(penalized, direction))

    def at(self, size: Tensor) -> Tensor:
        """Margins [n, P, K] after a step of `size` [P]."""
        return torch.addcmul(self.margins, size.to(self.moves.dtype)[None, :, None], self.moves)

    def take(self, chosen: Tensor) -> _Line:
        """Only some C, [P] bool."""
        if bool(chosen.all()):
            return self
        return _Line(self.margins[:, chosen], self.moves[:, chosen], *(t[chosen] for t in self[2:]))

    def evaluate(self, size: Tensor) -> tuple[Tensor, Tensor]:
        """Objective and its derivative at `size`, [P] float64 both."""
        loss, wrong = _cross_entropy(self.at(size))
        value = self.c * loss + self.constant + size * self.linear + size**2 * self.square / 2
        return value, self.c * _dot(wrong, self.moves) + self.linear + size * self.square


def _line_search(line: _Line, start: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Step sizes [P] that meet the strong Wolfe conditions, objectives there [P], and where none was found [P].

    The objective is convex along the line: bracket the minimum by doubling, then secant steps on the derivative
    and bisections in turn. Without a point that meets both conditions, the furthest one that lies lower is taken.
    """
    slack = 4 * torch.finfo(line.moves.dtype).eps * start  # rounding of the objective is no increase
    size = torch.ones_like(start)
    low, low_value, low_slope = torch.zeros_like(start), start, slope
    high = torch.full_like(start, torch.inf)
    value, derivative = torch.empty_like(start), torch.empty_like(start)
    searching = torch.ones_like(start, dtype=torch.bool)
    for trial in range(LINE_SEARCH):
        value[searching], derivative[searching] = line.evaluate(size[searching])
        lower = value <= start + 1e-4 * size * slope + slack
        good = lower & (derivative.abs() <= 0.9 * slope.abs())
        right = good | (lower & (derivative < 0))  # the minimum lies further out
        secant = low - low_slope * (size - low) / (derivative - low_slope)
        low, low_value = torch.where(right, size, low), torch.where(right, value, low_value)
        low_slope = torch.where(right, derivative, low_slope)
        high = torch.where(right, high, size)
        if bool(good.all()):
            break
        line, searching = line.take(~good[searching]), ~good
        inside = ~right & (secant > low) & (secant < high) & (trial % 2 == 0)
        other = torch.where(high.isinf(), 2 * size, (low + high) / 2)
        size = torch.where(good, size, torch.where(inside, secant, other))
    return low, low_value, low == 0
