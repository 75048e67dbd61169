"""Logistic regression against scikit-learn on real features: objective at every C, top-1 at the C each selects."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from sklearn.linear_model import LogisticRegression

from benchmarks.features_of import DATA, fashion_source, teacher_features
from benchmarks.logreg import GRID
from unic_core.evals.features import FeatureSet
from unic_core.evals.linear import validation_split
from unic_core.evals.logreg import fit_logreg, objective
from unic_core.provenance import versions
from workflows.demo_data import find_mnist

TEACHERS = ("efficientnet_lite0", "efficientnet_lite2")
LIMIT = {"train": 2000, "test": 10_000}
TOL, MOST = 1e-7, 20_000  # tolerance and iterations that bring scikit-learn to the optimum, in float64


class Parity(NamedTuple):
    """One feature set. ratios: our objective over its, by rising C; c and top1 are (ours, scikit-learn's).

    converged: top-1 of scikit-learn brought to the optimum, at our C and at its own. It says which part of a difference
    in top-1 comes from where a solver stops.
    """

    name: str
    ratios: list[float]
    c: tuple[float, float]
    top1: tuple[float, float]
    converged: tuple[float, float] | None


def real_sets() -> Iterator[tuple[str, FeatureSet, FeatureSet]]:
    """Name, training and test features of four real sets, and of two more where MNIST can be had."""
    sources = {"Fashion-MNIST": fashion_source(), "digits": "sklearn:digits"}
    mnist = find_mnist(DATA)
    if mnist is not None:
        sources["MNIST"] = f"idx:{mnist}"
    for images, source in sources.items():
        for model in TEACHERS:
            features = teacher_features(source, model, LIMIT)
            yield f"{images}, {model}", features["train"], features["test"]


def compare(name: str, train: FeatureSet, test: FeatureSet, seed: int = 22, optimum: bool = False) -> Parity:
    """Fit both on 80 % of the training images, select C on the rest, fit again on all, score on the test images."""
    classes = int(train.y.max()) + 1
    held_out = validation_split(train.y, 0.2, seed)
    x, y = train.x[~held_out], train.y[~held_out]
    ours = fit_logreg(x, y, GRID, classes)
    theirs = [_scikit(x, y, c) for c in GRID]
    weight = torch.stack([torch.tensor(model.coef_.T) for model in theirs])
    bias = torch.stack([torch.tensor(model.intercept_) for model in theirs])
    ratios = objective(x, y, ours.weight, ours.bias, GRID) / objective(x, y, weight, bias, GRID)
    valid_x, valid_y = train.x[held_out], train.y[held_out]
    own = int((ours.predict(valid_x) == valid_y).double().mean(1).argmax())
    other = max(range(len(GRID)), key=lambda i: theirs[i].score(valid_x.numpy(), valid_y.numpy()))
    final = fit_logreg(train.x, train.y, (GRID[own],), classes).predict(test.x)[0]
    selected = GRID[own], GRID[other]
    top1 = float((final == test.y).double().mean()), _top1(_scikit(train.x, train.y, selected[1]), test)
    if not optimum:
        return Parity(name, ratios.tolist(), selected, top1, None)
    optimal = {c: _top1(_scikit(train.x.double(), train.y, c, TOL, MOST), test) for c in set(selected)}
    return Parity(name, ratios.tolist(), selected, top1, (optimal[selected[0]], optimal[selected[1]]))


def _scikit(x: torch.Tensor, y: torch.Tensor, c: float, tol: float = 1e-4, max_iter: int = 2000) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LogisticRegression(C=c, tol=tol, max_iter=max_iter).fit(x.numpy(), y.numpy())


def _top1(model: LogisticRegression, test: FeatureSet) -> float:
    return float(model.score(test.x.numpy(), test.y.numpy()))


def main() -> None:
    results = []
    for name, train, test in real_sets():
        result = compare(name, train, test, optimum=True)
        print(f"{name}: {len(train):,} x {train.x.shape[1]:,}, {len(test):,} test images")
        print("  objective over scikit-learn's: " + ", ".join(f"{r:.5f}" for r in result.ratios))
        top1, theirs = result.top1
        print(f"  top-1 {top1:.2%} at C = {result.c[0]:g}; its {theirs:.2%} at C = {result.c[1]:g}")
        if result.converged is not None:
            at_ours, at_its = result.converged
            print(f"  scikit-learn at the optimum of these C: {at_ours:.2%}, {at_its:.2%}", flush=True)
        results.append(result._asdict())
    print(json.dumps({"benchmark": "parity", "sets": results, "versions": versions()}))


if __name__ == "__main__":
    main()
