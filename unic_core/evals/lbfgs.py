"""L-BFGS for several C at once: each keeps its own curvature, step size and end."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unic_core.evals.curvature import Curvature
from unic_core.evals.softmax import Design, cross_entropy, dot, per_c

TOLERANCE = 5e-6  # half the Newton decrement that counts as converged, of the objective over C and the number of
# images: scikit-learn bounds the gradient of this same quantity, the mean cross-entropy with its penalty
MEMORY = 20  # pairs of steps and gradient differences that L-BFGS remembers
RESCALE = 20  # iterations between two computations of the curvature
REFRESH = 50  # iterations after which margins are computed afresh, against drift
LINE_SEARCH = 25  # evaluations per line search; they are elementwise


class Pair(NamedTuple):
    """What one step taught about the Hessian."""

    step: Tensor  # [P, K, R + 1]
    change: Tensor  # of the gradient, [P, K, R + 1]
    rho: Tensor  # 1 / <step, change>, or 0 where that isn't positive; [P]

    @classmethod
    def of(cls, step: Tensor, change: Tensor) -> Pair:
        inner = dot(step, change)
        return cls(step, change, torch.where(inner > 0, 1 / inner, 0.0))

    def at(self, design: Design, ratio: Tensor) -> Pair:
        """The same step at C `ratio` [P] times as large: the gradient of the loss is in proportion to C."""
        penalty = design.penalty * self.step
        return Pair.of(self.step, torch.addcmul(penalty, per_c(ratio, penalty), self.change - penalty))

    def take(self, chosen: Tensor) -> Pair:
        """Only some C, [P] bool."""
        return Pair(*(t[chosen] for t in self))


class Solution(NamedTuple):
    theta: Tensor  # [P, K, R + 1]
    objective: Tensor  # [P] float64
    iterations: Tensor  # [P] int64
    converged: Tensor  # [P] bool
    pairs: tuple[Pair, ...] = ()  # of the C that left last


def minimize(design: Design, c: Tensor, theta: Tensor, max_iterations: int, pairs: tuple[Pair, ...] = ()) -> Solution:
    """L-BFGS for every C at once (Nocedal & Wright, algorithm 7.5), in the dtype of `theta`; `pairs` to begin with.

    A C leaves when it has converged, or when its line search finds no lower point at this precision.
    """
    total = len(c)
    out = Solution(
        theta.clone(),
        torch.zeros_like(c),
        torch.zeros(total, dtype=torch.int64, device=c.device),
        torch.zeros(total, dtype=torch.bool, device=c.device),
    )
    live = torch.arange(total, device=c.device)
    margins = design.margins(theta, own=-torch.inf)
    loss, wrong = cross_entropy(margins)
    objective = c * loss + dot(theta * design.penalty, theta) / 2
    gradient = design.gradient(theta, wrong, c)
    quiet = torch.zeros_like(live)  # how often in a row the decrement was small
    stuck = torch.zeros_like(live, dtype=torch.bool)
    for iteration in range(max_iterations + 1):
        if iteration % RESCALE == 0:
            curvature = Curvature.at(design, wrong, c)
        direction = -_apply_inverse(gradient, curvature, pairs)
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
            direction, curvature = direction[stay], curvature.take(stay)
            pairs = tuple(pair.take(stay) for pair in pairs)
        line = _Line.along(design, theta, direction, margins, c)
        size, objective, stuck = _line_search(line, objective, slope)
        step = per_c(size, theta) * direction
        theta = theta + step
        margins = design.margins(theta, own=-torch.inf) if (iteration + 1) % REFRESH == 0 else line.at(size)
        wrong = cross_entropy(margins)[1]
        before, gradient = gradient, design.gradient(theta, wrong, c)
        pairs = (*pairs[1 - MEMORY :], Pair.of(step, gradient - before))
    return out._replace(pairs=pairs)


def _apply_inverse(gradient: Tensor, curvature: Curvature, pairs: tuple[Pair, ...]) -> Tensor:
    """The two-loop recursion: an approximate inverse Hessian times the gradient, [P, K, R + 1]."""

    def scaled(factor: Tensor, tensor: Tensor) -> Tensor:
        return per_c(factor, tensor) * tensor

    result, factors = gradient, []
    for pair in reversed(pairs):
        factors.append(pair.rho * dot(pair.step, result))
        result = result - scaled(factors[-1], pair.change)
    result = curvature.apply(result)
    if pairs:
        last = pairs[-1]
        fit = 1 / (last.rho * dot(last.change, curvature.apply(last.change)))
        result = scaled(torch.where(fit.isfinite(), fit, 1.0), result)
    for pair, factor in zip(pairs, reversed(factors), strict=True):
        result = result + scaled(factor - pair.rho * dot(pair.change, result), pair.step)
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
    def along(cls, design: Design, theta: Tensor, direction: Tensor, margins: Tensor, c: Tensor) -> _Line:
        penalized = design.penalty * direction
        constant = dot(design.penalty * theta, theta) / 2
        moves = design.margins(direction, own=0.0)
        return cls(margins, moves, c, constant, dot(penalized, theta), dot(penalized, direction))

    def at(self, size: Tensor) -> Tensor:
        """Margins [P, K, n] after a step of `size` [P]."""
        return torch.addcmul(self.margins, per_c(size, self.moves), self.moves)

    def take(self, chosen: Tensor) -> _Line:
        """Only some C, [P] bool."""
        if bool(chosen.all()):
            return self
        return _Line(*(t[chosen] for t in self))

    def evaluate(self, size: Tensor) -> tuple[Tensor, Tensor]:
        """Objective and its derivative at `size`, [P] float64 both."""
        loss, wrong = cross_entropy(self.at(size))
        value = self.c * loss + self.constant + size * self.linear + size**2 * self.square / 2
        return value, self.c * dot(wrong, self.moves) + self.linear + size * self.square


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
