"""Linear classifiers (section 3.1): settings chosen on a validation split, then fitted on everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unic_core.config import EvaluationConfig
from unic_core.errors import UnicError
from unic_core.evals.logreg import Eigenbasis, PathSolver
from unic_core.evals.search import by_grid, by_optuna
from unic_core.evals.sgd import draw_settings, fit_heads

Classifier = Literal["logreg", "sgd"]


@dataclass(frozen=True)
class Head:
    """weight [D, K] and bias [K] of a linear classifier; hyper: what was chosen; normalize: of the features first."""

    weight: Tensor
    bias: Tensor
    hyper: dict[str, float]
    normalize: bool

    def predict(self, x: Tensor) -> Tensor:
        """Class numbers [n] int64 of features [n, D] on the device of the weight."""
        return ((F.normalize(x, dim=1) if self.normalize else x) @ self.weight + self.bias).argmax(1)


def fit_heads_of_seeds(
    x: Tensor, y: Tensor, classes: int, config: EvaluationConfig, seed: int, device: str, classifier: Classifier
) -> tuple[Head, ...]:
    """Logistic regression (the smallest of the best C), or SGD (the first of the best trials), for every seed.

    Args:
        x: features [n, D]. y: class numbers [n] int64 in [0, classes).
        seed: of the split, the search and the order; the first of `config.seeds` numbers in a row.

    Raises:
        UnicError: no class has two images.
    """
    splits = {number: validation_split(y, config.validation, number) for number in range(seed, seed + config.seeds)}
    if classifier == "sgd":
        return tuple(_fit_sgd(x, y, split, classes, config, number, device) for number, split in splits.items())
    x, y = x.to(device), y.to(device)
    basis = Eigenbasis.of(x)
    return tuple(_fit_logreg(basis, x, y, split.to(device), classes, config, i) for i, split in splits.items())


def _fit_logreg(
    basis: Eigenbasis, x: Tensor, y: Tensor, held_out: Tensor, classes: int, config: EvaluationConfig, seed: int
) -> Head:
    solver = PathSolver(basis.take(~held_out), y[~held_out], classes, config.max_iterations)
    if config.c_search == "grid":
        best = by_grid(solver, config.c_values, x[held_out], y[held_out])
    else:
        bounds = min(config.c_values), max(config.c_values)
        best = by_optuna(solver, bounds, config.c_trials, seed, x[held_out], y[held_out])
    final = PathSolver(basis, y, classes, config.max_iterations).fit([best.c], (best.weight, best.bias))
    return Head(final.weight[0], final.bias[0], {"C": best.c, "validation_top1": best.top1}, normalize=False)


def _fit_sgd(
    x: Tensor, y: Tensor, held_out: Tensor, classes: int, config: EvaluationConfig, seed: int, device: str
) -> Head:
    """The features stay where they are, batches travel."""
    lrs, decays = draw_settings(config.sgd_heads, seed)
    trials = fit_heads(x[~held_out], y[~held_out], lrs, decays, classes, config.sgd_epochs, seed, device)
    accuracy = (trials.predict(x[held_out]).cpu() == y[held_out]).double().mean(1)
    best = int(accuracy.argmax())
    final = fit_heads(x, y, lrs[best : best + 1], decays[best : best + 1], classes, config.sgd_epochs, seed, device)
    hyper = {"lr": lrs[best], "weight_decay": decays[best], "validation_top1": float(accuracy[best])}
    return Head(final.weight[0].T, final.bias[0], hyper, normalize=True)


def validation_split(y: Tensor, share: float, seed: int) -> Tensor:
    """Which images are held out, [n] bool: `share` of every class, at least one, but never its only image.

    Raises:
        UnicError: every class has a single image.
    """
    rng = np.random.default_rng(seed)
    held_out = torch.zeros(len(y), dtype=torch.bool)
    for label in torch.unique(y):
        members = (y == label).nonzero()[:, 0]
        count = min(max(1, int(share * len(members))), len(members) - 1)
        held_out[members[torch.from_numpy(rng.permutation(len(members))[:count])]] = True
    if not bool(held_out.any()):
        raise UnicError("every class has a single training image; selecting C needs a class with at least two")
    return held_out
