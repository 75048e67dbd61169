"""Multinomial logistic regression at many regularization strengths at once.

The objective is scikit-learn's, C * sum of cross-entropies + ||W||^2 / 2 with a free intercept, for every C of
a grid (always the softmax form; with two classes scikit-learn switches to the binary form, whose C counts half).
What makes it fast:

- The values of C form a path: each starts where a line through the last two solutions (in log C) leads. With few
  classes neighbors on the path share each matrix product, and a C that has converged leaves the batch.
- Features are rotated into the eigenbasis of their centered Gram matrix. There the Hessian is close to its diagonal,
  which is computed exactly now and then and is the starting matrix of L-BFGS. The penalty doesn't notice a
  rotation, so the optimum is the same. With fewer images than features only their span is kept.
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
from unic_core.evals.eigenbasis import eigenbasis

TOLERANCE = 1e-5  # see `_tolerance`
MEMORY = 10  # pairs of steps and gradient differences that L-BFGS remembers
LOGITS = 2**26  # numbers per buffer of margins
GROUP = 10  # columns of weights that make a matrix product efficient: C are fitted side by side up to this number
RESCALE = 10  # iterations between two computations of the Hessian's diagonal
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
    basis = eigenbasis(x)
    given = None if start is None else basis.enter(*start)
    design = _Design(basis.z, basis.z.square(), y, basis.penalty, classes)
    path = _Path()
    solutions: list[_Solution] = []
    for c in torch.split(rising.values, max(1, min(GROUP // classes, LOGITS // (len(x) * classes)))):
        solutions.append(_solve(design, c, _start(design, c, given, path), max_iterations))
        path.add(c, solutions[-1].theta)
    back = rising.indices.argsort()
    weight, bias = basis.leave(torch.cat([s.theta for s in solutions])[back])
    return LogisticRegression(
        c_values=tuple(c_values),
        weight=weight,
        bias=bias,
        objective=torch.cat([s.objective for s in solutions])[back].cpu(),
        iterations=torch.cat([s.iterations for s in solutions])[back].cpu(),
        converged=torch.cat([s.converged for s in solutions])[back].cpu(),
    )


def objective(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, c_values: Sequence[float]) -> Tensor:
    """C * sum of cross-entropies + ||W||^2 / 2 in float64, [P], of weight [P, D, K] and bias [P, K]."""
    values = []
    for c, w, b in zip(c_values, weight.double(), bias.double(), strict=True):
        loss = w.new_zeros(())
        for part, labels in zip(torch.split(x, 2**14), torch.split(y, 2**14), strict=True):
            loss += F.cross_entropy(part.double() @ w + b, labels, reduction="sum")
        values.append(c * loss + w.square().sum() / 2)
    return torch.stack(values)


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


class _Design(NamedTuple):
    """What all values of C have in common; names and shapes as in `Eigenbasis`, squares = z * z, y [n] int64."""

    z: Tensor
    squares: Tensor
    y: Tensor
    penalty: Tensor
    classes: int

    def double(self) -> _Design:
        return _Design(self.z.double(), self.squares.double(), self.y, self.penalty.double(), self.classes)

    def margins(self, theta: Tensor, own: float) -> Tensor:
        """Logits minus the true class's logit, [P, K, n], with `own` written at the true class."""
        logits = (theta.flatten(0, 1) @ self.z.T).view(*theta.shape[:2], -1)
        index = self.y.expand(len(theta), 1, -1)
        return (logits - logits.gather(1, index)).scatter_(1, index, own)

    def gradient(self, theta: Tensor, wrong: Tensor, c: Tensor) -> Tensor:
        """[P, K, R + 1] from the probabilities of the wrong classes [P, K, n]."""
        index = self.y.expand(len(theta), 1, -1)
        residual = wrong.scatter(1, index, -wrong.sum(1, keepdim=True))
        product = (residual.flatten(0, 1) @ self.z).view_as(theta)
        return product.mul_(_per_c(c, theta)).addcmul_(self.penalty, theta)

    def inverse_diagonal(self, wrong: Tensor, c: Tensor) -> Tensor:
        """Inverse of the Hessian's diagonal, [P, K, R + 1]."""
        index = self.y.expand(len(wrong), 1, -1)
        error = wrong.sum(1, keepdim=True)
        spread = wrong * (1 - wrong)
        spread.scatter_(1, index, error * (1 - error))
        curvature = (spread.flatten(0, 1) @ self.squares).view(*wrong.shape[:2], -1)
        return 1 / (curvature.mul_(_per_c(c, wrong)).add_(self.penalty).clamp_min_(SMALLEST))


def _cross_entropy(margins: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over images of the cross-entropy, [P] float64, and probabilities of the wrong classes [P, K, n].

    `margins` [P, K, n] hold -inf at the true class.
    """
    top = margins.amax(1, keepdim=True).clamp_min(0)
    wrong = F.threshold((margins - top).clamp_min_(LOWEST).exp_(), SMALLEST, 0.0)
    excess = wrong.sum(1, keepdim=True) + torch.expm1(-top)  # 1 + excess is the sum over all classes
    loss = (top + excess.log1p()).sum((1, 2), dtype=torch.float64)
    return loss, wrong / (1 + excess)


def _per_c(values: Tensor, like: Tensor) -> Tensor:
    """[P] as [P, 1, 1] in the dtype of `like`."""
    return values.to(like.dtype)[:, None, None]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per C: [P, ...] and [P, ...] to [P] float64."""
    products: Tensor = torch.linalg.vecdot(a.flatten(1), b.flatten(1))
    return products.double()


# ---------------------------------------------------------------- L-BFGS


class _Solution(NamedTuple):
    theta: Tensor  # [P, K, R + 1]
    objective: Tensor  # [P] float64
    iterations: Tensor  # [P] int64
    converged: Tensor  # [P] bool


class _Pair(NamedTuple):
    step: Tensor  # [P, K, R + 1]
    change: Tensor  # of the gradient, [P, K, R + 1]
    rho: Tensor  # 1 / <step, change>, or 0 where that isn't positive; [P]


def _solve(design: _Design, c: Tensor, theta: Tensor, max_iterations: int) -> _Solution:
    """float32 for all C; those it can't bring to the tolerance go on in float64."""
    first = _minimize(design, c, theta, max_iterations)
    left = (~first.converged & (first.iterations < max_iterations)).nonzero()[:, 0]
    if len(left) == 0:
        return first
    budget = max_iterations - int(first.iterations[left].min())
    more = _minimize(design.double(), c[left], first.theta[left].double(), budget)
    return _Solution(
        first.theta.index_copy(0, left, more.theta.float()),
        first.objective.index_copy(0, left, more.objective),
        first.iterations.index_add(0, left, more.iterations),
        first.converged.index_copy(0, left, more.converged),
    )


def _start(design: _Design, c: Tensor, given: Tensor | None, path: _Path) -> Tensor:
    """Where to start for every C, [P, K, R + 1]: the best of zeros, `given` [K, R + 1] and what the path suggests."""
    starts = [theta.expand(len(c), -1, -1) for theta in ([] if given is None else [given])]
    starts += path.guesses(c)
    best = design.penalty.new_zeros(len(c), design.classes, len(design.penalty))
    value = c * len(design.y) * math.log(design.classes)
    for start in starts:
        loss, _ = _cross_entropy(design.margins(start, own=-torch.inf))
        other = c * loss + _dot(start * design.penalty, start) / 2
        best = torch.where(_per_c(other < value, best) > 0, start, best)
        value = torch.minimum(value, other)
    return best


def _tolerance(c: Tensor) -> Tensor:
    """Half the Newton decrement, as a share of the objective, that counts as converged: [P].

    Predictions at small C depend on an accurate optimum. At large C the weights grow without bound while the
    predictions no longer change.
    """
    return (TOLERANCE * c.sqrt()).clamp(TOLERANCE / 10, 10 * TOLERANCE)


class _Path:
    """The solutions so far, by rising C: between neighbors the weights move nearly along a line in log C."""

    def __init__(self) -> None:
        self._points: list[tuple[float, Tensor]] = []

    def add(self, c: Tensor, theta: Tensor) -> None:
        """Remember the solutions theta [P, K, R + 1] at c [P]."""
        points = zip(c.log().tolist(), theta, strict=True)
        self._points = [*self._points, *points][-2:]

    def guesses(self, c: Tensor) -> list[Tensor]:
        """Starting points [P, K, R + 1] for larger c [P]: the last solution, and the line through the last two."""
        if not self._points:
            return []
        last, new = self._points[-1]
        found = [new.expand(len(c), -1, -1)]
        if len(self._points) == 2 and last > self._points[0][0]:
            before, old = self._points[0]
            found.append(new + _per_c((c.log() - last) / (last - before), new) * (new - old))
        return found


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
    objective = c * loss + _dot(theta * design.penalty, theta) / 2
    gradient = design.gradient(theta, wrong, c)
    pairs: list[_Pair] = []
    quiet = torch.zeros_like(live)  # how often in a row the decrement was small
    stuck = torch.zeros_like(live, dtype=torch.bool)
    for iteration in range(max_iterations + 1):
        if iteration % RESCALE == 0:
            diagonal = design.inverse_diagonal(wrong, c)
        direction = -_apply_inverse(gradient, diagonal, pairs)
        slope = _dot(gradient, direction)
        quiet = torch.where(-slope / 2 <= _tolerance(c) * objective, quiet + 1, 0)
        done = (quiet >= 2) | stuck | (slope >= 0)
        if iteration == max_iterations:
            done = torch.ones_like(done)
        if bool(done.any()):
            gone, stay = live[done], ~done
            out.theta[gone] = theta[done]
            out.objective[gone] = objective[done]
            out.iterations[gone] = iteration
            out.converged[gone] = (quiet >= 1)[done]
            if bool(done.all()):
                break
            live, c, objective, slope, quiet = live[stay], c[stay], objective[stay], slope[stay], quiet[stay]
            theta, margins, gradient = theta[stay], margins[stay], gradient[stay]
            direction, diagonal = direction[stay], diagonal[stay]
            pairs = [_Pair(p.step[stay], p.change[stay], p.rho[stay]) for p in pairs]
        line = _Line.along(design, theta, direction, margins, c)
        size, objective, stuck = _line_search(line, objective, slope)
        step = _per_c(size, theta) * direction
        theta = theta + step
        margins = design.margins(theta, own=-torch.inf) if (iteration + 1) % REFRESH == 0 else line.at(size)
        wrong = _cross_entropy(margins)[1]
        before, gradient = gradient, design.gradient(theta, wrong, c)
        inner = _dot(step, gradient - before)
        rho = torch.where(inner > 0, 1 / inner, 0.0)
        pairs = [*pairs[1 - MEMORY :], _Pair(step, gradient - before, rho)]
    return out


def _apply_inverse(gradient: Tensor, diagonal: Tensor, pairs: list[_Pair]) -> Tensor:
    """The two-loop recursion: an approximate inverse Hessian times the gradient, [P, K, R + 1]."""

    def scaled(factor: Tensor, tensor: Tensor) -> Tensor:
        return _per_c(factor, tensor) * tensor

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

    margins: Tensor  # [P, K, n], -inf at the true class
    moves: Tensor  # [P, K, n], 0 at the true class
    c: Tensor  # [P]; so are the coefficients of penalty(size) below
    constant: Tensor
    linear: Tensor
    square: Tensor

    @classmethod
    def along(cls, design: _Design, theta: Tensor, direction: Tensor, margins: Tensor, c: Tensor) -> _Line:
        penalized = design.penalty * direction
        constant = _dot(design.penalty * theta, theta) / 2
        moves = design.margins(direction, own=0.0)
        return cls(margins, moves, c, constant, _dot(penalized, theta), _dot(penalized, direction))

    def at(self, size: Tensor) -> Tensor:
        """Margins [P, K, n] after a step of `size` [P]."""
        return torch.addcmul(self.margins, _per_c(size, self.moves), self.moves)

    def take(self, chosen: Tensor) -> _Line:
        """Only some C, [P] bool."""
        if bool(chosen.all()):
            return self
        return _Line(*(t[chosen] for t in self))

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
