"""Which C is best on a validation split: all of a grid, or as many trials of Optuna's TPE as the protocol has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from unic_core.evals.logreg import LogisticRegression, PathSolver

STARTUP = 10  # random trials before TPE learns from them, its default


class Choice(NamedTuple):
    """The smallest C with the best top-1 on the validation split, and its weight [D, K] and bias [K]."""

    c: float
    top1: float
    weight: Tensor
    bias: Tensor


def by_grid(solver: PathSolver, c_values: Sequence[float], x: Tensor, y: Tensor) -> Choice:
    """Try every C of the grid on features x [n, D] and class numbers y [n]."""
    return _best(_score(solver.fit(c_values), x, y))


def by_optuna(solver: PathSolver, bounds: tuple[float, float], trials: int, seed: int, x: Tensor, y: Tensor) -> Choice:
    """Log-uniform trials within `bounds` by a tree-structured Parzen estimator (section 3.1); equal for equal seeds.

    TPE's first trials are random, so they are asked for at once and solved along the path of C; the others come one
    by one, each from the nearest solutions so far.
    """
    import optuna  # half a second to import

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    tried: list[Choice] = []
    while len(tried) < trials:
        asked = [study.ask() for _ in range(1 if tried else min(STARTUP, trials))]
        found = _score(solver.fit([trial.suggest_float("C", *bounds, log=True) for trial in asked]), x, y)
        for trial, choice in zip(asked, found, strict=True):
            study.tell(trial, choice.top1)
        tried = [*tried, *found]
    return _best(tried)


def _score(models: LogisticRegression, x: Tensor, y: Tensor) -> list[Choice]:
    top1 = (models.predict(x) == y).double().mean(1).tolist()
    return [Choice(*found) for found in zip(models.c_values, top1, models.weight, models.bias, strict=True)]


def _best(choices: Sequence[Choice]) -> Choice:
    return min(choices, key=lambda choice: (-choice.top1, choice.c))
