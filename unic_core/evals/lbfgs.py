"""L-BFGS for several C at once: each keeps its own curvature, step size and end."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unic_core.evals.curvature import Curvature
from unic_core.evals.inverse_hessian import InverseHessian, Pairs
from unic_core.evals.softmax import Design, cross_entropy, dot, per_c

TOLERANCE = 5e-6  # half the Newton decrement that counts as converged, of the objective over C and the number of
# images: scikit-learn bounds the gradient of this same quantity, the mean cross-entropy with its penalty
RESCALE = 20  # iterations between two computations of the curvature
REFRESH = 50  # iterations after which margins are computed afresh, against drift
LINE_SEARCH = 25  # evaluations per line search; they are elementwise


class Solution(NamedTuple):
    theta: Tensor  # [P, K, R + 1]
    objective: Tensor  # [P] float64
    iterations: Tensor  # [P] int64
    converged: Tensor  # [P] bool
    pairs: Pairs  # of the C that left last


def minimize(design: Design, c: Tensor, theta: Tensor, max_iterations: int, pairs: Pairs) -> Solution:
    """L-BFGS for every C at once (Nocedal & Wright, algorithm 7.5), in the dtype of `theta`; `pairs` to begin with.

    A C leaves when it has converged, or when its line search finds no lower point at this precision.
    """
    total = len(c)
    out = Solution(
        theta.clone(),
        torch.zeros_like(c),
        torch.zeros(total, dtype=torch.int64, device=c.device),
        torch.zeros(total, dtype=torch.bool, device=c.device),
        pairs,
    )
    live = torch.arange(total, device=c.device)
    margins = design.margins(theta, own=-torch.inf)
    loss, wrong = cross_entropy(margins)
    objective = c * loss + dot(theta * design.penalty, theta) / 2
    gradient = design.gradient(theta, wrong, c)
    inverse = InverseHessian(Curvature.at(design, wrong, c), pairs)
    quiet = torch.zeros_like(live)  # how often in a row the decrement was small
    stuck = torch.zeros_like(live, dtype=torch.bool)
    for iteration in range(max_iterations + 1):
        if iteration and iteration % RESCALE == 0:
            inverse = InverseHessian(Curvature.at(design, wrong, c), inverse.pairs)
        direction = -inverse.apply(gradient)
        slope = dot(gradient, direction)
        quiet = torch.where(-slope / 2 <= TOLERANCE * c * len(design.y), quiet + 1, 0)
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
            direction, inverse = direction[stay], inverse.take(stay)
        line = _Line.along(design, theta, direction, margins, c)
        size, point = _line_search(line, objective, slope)
        objective, stuck = point.value, size == 0
        step = per_c(size, theta) * direction
        theta = theta + step
        margins, wrong = point.margins, point.wrong
        if (iteration + 1) % REFRESH == 0:
            margins = design.margins(theta, own=-torch.inf)
            wrong = cross_entropy(margins)[1]
        before, gradient = gradient, design.gradient(theta, wrong, c)
        inverse.learn(step, gradient - before)
    return out._replace(pairs=inverse.pairs)


class _Point(NamedTuple):
    """A point on a line."""

    margins: Tensor  # [P, K, n]
    wrong: Tensor  # probabilities of the wrong classes, [P, K, n]
    value: Tensor  # of the objective, [P] float64
    slope: Tensor  # its derivative by the size of the step, [P] float64


class _Line(NamedTuple):
    """The objective along a direction: margins move linearly, the penalty is a parabola."""

    margins: Tensor  # [P, K, n], -inf at the true class
    moves: Tensor  # [P, K, n], 0 at the true class
    c: Tensor  # [P]; so are the coefficients of penalty(size) below
    constant: Tensor
    linear: Tensor
    square: Tensor

    @classmethod
    def along(cls, design: Design, theta: Tensor, direction: Tensor, margins: Tensor, c: Tensor) -> _Line:
        penalized = design.penalty * direction
        constant = dot(design.penalty * theta, theta) / 2
        moves = design.margins(direction, own=0.0)
        return cls(margins, moves, c, constant, dot(penalized, theta), dot(penalized, direction))

    def take(self, chosen: Tensor) -> _Line:
        """Only some C, [P] bool."""
        if bool(chosen.all()):
            return self
        return _Line(*(t[chosen] for t in self))

    def at(self, size: Tensor) -> _Point:
        """The point after a step of `size` [P]."""
        margins = torch.addcmul(self.margins, per_c(size, self.moves), self.moves)
        loss, wrong = cross_entropy(margins)
        value = self.c * loss + self.constant + size * self.linear + size**2 * self.square / 2
        return _Point(margins, wrong, value, self.c * dot(wrong, self.moves) + self.linear + size * self.square)


def _line_search(line: _Line, start: Tensor, slope: Tensor) -> tuple[Tensor, _Point]:
    """Step sizes [P] that meet the strong Wolfe conditions, 0 where none was found, and the point there.

    The objective is convex along the line: bracket the minimum by doubling, then secant steps on the derivative
    and bisections in turn. Without a point that meets both conditions, the furthest one that lies lower is taken.
    """
    whole, size = line, torch.ones_like(start)
    slack = 4 * torch.finfo(line.moves.dtype).eps * start  # rounding of the objective is no increase
    low, low_slope, high = torch.zeros_like(start), slope, torch.full_like(start, torch.inf)
    value, derivative = torch.empty_like(start), torch.empty_like(start)
    searching = torch.ones_like(start, dtype=torch.bool)
    for trial in range(LINE_SEARCH):
        point = line.at(size[searching])
        value[searching], derivative[searching] = point.value, point.slope
        lower = value <= start + 1e-4 * size * slope + slack
        good = lower & (derivative.abs() <= 0.9 * slope.abs())
        if bool(good.all()):
            return size, whole.at(size) if trial else point  # the whole step is good almost always
        right = good | (lower & (derivative < 0))  # the minimum lies further out
        secant = low - low_slope * (size - low) / (derivative - low_slope)
        low, low_slope = torch.where(right, size, low), torch.where(right, derivative, low_slope)
        high = torch.where(right, high, size)
        line, searching = line.take(~good[searching]), ~good
        inside = ~right & (secant > low) & (secant < high) & (trial % 2 == 0)
        other = torch.where(high.isinf(), 2 * size, (low + high) / 2)
        size = torch.where(good, size, torch.where(inside, secant, other))
    return low, whole.at(low)
