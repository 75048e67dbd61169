"""Logistic regression at twelve values of C: all together against scikit-learn's loop, objectives compared at each C.

Two data sets: Fashion-MNIST through a pretrained teacher, and an easy set of well separated classes.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from benchmarks.features_of import fashion_source, separable, teacher_features
from unic_core.evals.logreg import fit_logreg, objective
from unic_core.provenance import versions

GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6)
SLACK = 1e-5  # relative; both solvers stop at a tolerance


def loop(x: Tensor, y: Tensor) -> tuple[list[float], list[float]]:
    """scikit-learn as the protocol uses it: objective and seconds at every C."""
    values, seconds = [], []
    for c in GRID:
        begin = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = LogisticRegression(C=c, max_iter=2000).fit(x.numpy(), y.numpy())
        seconds.append(time.perf_counter() - begin)
        weight, bias = torch.tensor(model.coef_.T)[None], torch.tensor(model.intercept_)[None]
        values.append(objective(x, y, weight, bias, (c,)).item())
    return values, seconds


def measure(name: str, x: Tensor, y: Tensor, goal: float, reference: bool) -> dict[str, object]:
    """One data set: a table for people, and a record."""
    classes = int(y.max()) + 1
    begin = time.perf_counter()
    fitted = fit_logreg(x, y, GRID, classes)
    ours = time.perf_counter() - begin
    own = objective(x, y, fitted.weight, fitted.bias, GRID).tolist()
    print(f"{name}: {x.shape[0]:,} x {x.shape[1]:,}, {classes} classes")
    record: dict[str, object] = {"name": name, "shape": list(x.shape), "classes": classes, "ours_s": ours}
    record |= {"objective": own, "iterations": fitted.iterations.tolist(), "converged": fitted.converged.tolist()}
    if not reference:
        for c, a, n in zip(GRID, own, fitted.iterations.tolist(), strict=True):
            print(f"  {c:8.0e} {a:14.6g} {n:6d} iterations")
        print(f"  all together {ours:.1f} s")
        return record
    theirs, seconds = loop(x, y)
    print(f"  {'C':>8} {'objective':>14} {'scikit-learn':>14} {'ratio':>9} {'iterations':>11} {'its seconds':>12}")
    for c, a, b, n, s in zip(GRID, own, theirs, fitted.iterations.tolist(), seconds, strict=True):
        print(f"  {c:8.0e} {a:14.6g} {b:14.6g} {a / b:9.6f} {n:11d} {s:12.1f}")
    no_worse = all(a <= b * (1 + SLACK) for a, b in zip(own, theirs, strict=True))
    speedup = sum(seconds) / ours
    print(f"  {ours:.1f} s against {sum(seconds):.1f} s: {speedup:.1f}x (goal {goal:g}x), no worse: {no_worse}")
    return record | {"loop_s": sum(seconds), "loop_objective": theirs, "speedup": speedup, "no_worse": no_worse}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--only", choices=["fashion", "separable"])
    parser.add_argument("--no-reference", action="store_true", help="leave scikit-learn out")
    options = parser.parse_args()
    records = []
    if options.only != "separable":
        features = teacher_features(fashion_source(), options.model, {"train": options.images})["train"]
        records.append(measure(f"Fashion-MNIST, {options.model}", features.x, features.y, 15, not options.no_reference))
    if options.only != "fashion":
        records.append(measure("separable", *separable(8000, 768, 100), 1, not options.no_reference))
    device = f"CPU, {torch.get_num_threads()} thread(s)"
    print(json.dumps({"benchmark": "logreg", "sets": records, "device": device, "versions": versions()}))


if __name__ == "__main__":
    main()
