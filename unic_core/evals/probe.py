"""The probes of section 3 on given features: a linear classifier with selected settings, and kNN."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unic_core.config import EvaluationConfig
from unic_core.errors import UnicError
from unic_core.evals.bootstrap import bootstrap_accuracy
from unic_core.evals.difference import pack_hits
from unic_core.evals.features import FeatureSet
from unic_core.evals.knn import classify_knn
from unic_core.evals.logreg import fit_logreg
from unic_core.evals.results import Protocol
from unic_core.evals.sgd import draw_settings, fit_heads

HEADLINE_K = 20
Classifier = Literal["logreg", "sgd"]


@dataclass(frozen=True)
class ProbeScore:
    """One protocol on one test set; the fields mean what they mean in `ResultRow`."""

    protocol: Protocol
    top1: float
    ci_low: float
    ci_high: float
    mean_class_accuracy: float
    n_train: int
    n_test: int
    hyper: dict[str, float]
    seconds: float
    hits: str = field(default="", repr=False)


@dataclass(frozen=True)
class FittedProbe:
    """A probe fitted on one training set, to be scored on any number of test sets."""

    labels: Tensor = field(repr=False)  # [K] int64, rising: label of every class number
    train: FeatureSet = field(repr=False)  # y holds class numbers
    weight: Tensor = field(repr=False)  # [D, K]
    bias: Tensor = field(repr=False)  # [K]
    hyper: dict[str, float]
    seconds: float
    config: EvaluationConfig = field(repr=False)
    seed: int
    device: str
    classifier: Classifier

    def score(self, test: FeatureSet) -> list[ProbeScore]:
        """The linear classifier and kNN on a test set.

        A test image of a class without training images counts as wrong. Mean per-class accuracy is over the classes
        that the test set has. The kNN score is that of k = 20 where the config lists it, else of its first k; `hyper`
        holds the accuracy at every k.

        Raises:
            UnicError: the test set is empty, unlabeled, of another width, or shares no class with the training set.
        """
        _check(test, "test")
        if test.x.shape[1] != self.train.x.shape[1]:
            raise UnicError(f"test features are {test.x.shape[1]} wide, train features {self.train.x.shape[1]}")
        if not bool(torch.isin(test.y, self.labels).any()):
            raise UnicError("the test set has none of the classes of the training set; check train_on of the probe")
        return [self._score_linear(test), self._score_knn(test)]

    def _score_linear(self, test: FeatureSet) -> ProbeScore:
        begin = time.perf_counter()
        x = test.x.to(self.device)
        x = F.normalize(x, dim=1) if self.classifier == "sgd" else x
        predicted = self.labels[(x @ self.weight + self.bias).argmax(1).cpu()]
        return self._scored(self.classifier, predicted, test, self.hyper, self.seconds + time.perf_counter() - begin)

    def _score_knn(self, test: FeatureSet) -> ProbeScore:
        begin = time.perf_counter()
        x, y = self.train.x.to(self.device), self.train.y.to(self.device)
        ks, temperature = self.config.knn_k, self.config.knn_temperature
        found = classify_knn(x, y, test.x.to(self.device), ks, temperature, len(self.labels))
        predicted = {k: self.labels[numbers.cpu()] for k, numbers in found.items()}
        best = HEADLINE_K if HEADLINE_K in ks else ks[0]
        hyper = {"k": float(best), "temperature": temperature}
        hyper |= {f"top1_k{k}": float((predicted[k] == test.y).double().mean()) for k in sorted(predicted)}
        return self._scored("knn", predicted[best], test, hyper, time.perf_counter() - begin)

    def _scored(
        self, protocol: Protocol, predicted: Tensor, test: FeatureSet, hyper: dict[str, float], seconds: float
    ) -> ProbeScore:
        correct = predicted == test.y
        low, high = bootstrap_accuracy(correct, self.seed)
        return ProbeScore(
            protocol=protocol,
            top1=float(correct.double().mean()),
            ci_low=low,
            ci_high=high,
            mean_class_accuracy=mean_class_accuracy(correct, test.y),
            n_train=len(self.train),
            n_test=len(test),
            hyper=hyper,
            seconds=seconds,
            hits=pack_hits(correct),
        )


def run_probe(
    train: FeatureSet,
    test: FeatureSet,
    config: EvaluationConfig,
    seed: int,
    device: str = "cpu",
    classifier: Classifier = "logreg",
) -> list[ProbeScore]:
    """Fit on `train`, score on `test`: one linear and one kNN score. Errors as in its two parts."""
    return fit_probe(train, config, seed, device, classifier).score(test)


def fit_probe(
    train: FeatureSet, config: EvaluationConfig, seed: int, device: str = "cpu", classifier: Classifier = "logreg"
) -> FittedProbe:
    """Select the classifier's settings on a validation split, then fit again on all of `train`.

    Args:
        train: features; labels may be any numbers from 0. seed: of the split, the order and the bootstrap.
        device: where the linear algebra runs.
        classifier: logistic regression (the smallest of the best C), or SGD (the first of the best trials).

    Raises:
        UnicError: unlabeled images (-1), fewer than two classes, or no class with two images.
    """
    _check(train, "train")
    labels, y = torch.unique(train.y, return_inverse=True)
    if len(labels) < 2:
        raise UnicError(f"all training images have label {int(labels[0])}; a probe needs at least two classes")
    begin = time.perf_counter()
    held_out = validation_split(y, config.validation, seed)
    fit = _fit_logreg if classifier == "logreg" else _fit_sgd
    weight, bias, hyper = fit(train.x, y, held_out, len(labels), config, seed, device)
    return FittedProbe(
        labels=labels,
        train=FeatureSet(train.x, y),
        weight=weight,
        bias=bias,
        hyper=hyper,
        seconds=time.perf_counter() - begin,
        config=config,
        seed=seed,
        device=device,
        classifier=classifier,
    )


def _fit_logreg(
    x: Tensor, y: Tensor, held_out: Tensor, classes: int, config: EvaluationConfig, seed: int, device: str
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Weight [D, K], bias [K] and what was chosen."""
    x, y = x.to(device), y.to(device)
    fit, validation = (~held_out).to(device), held_out.to(device)
    grid = sorted(set(config.c_values))
    models = fit_logreg(x[fit], y[fit], grid, classes, config.max_iterations)
    accuracy = (models.predict(x[validation]) == y[validation]).double().mean(1)
    best = int(accuracy.cpu().argmax())  # the first one: the smallest C
    start = (models.weight[best], models.bias[best])
    final = fit_logreg(x, y, [grid[best]], classes, config.max_iterations, start)
    return final.weight[0], final.bias[0], {"C": grid[best], "validation_top1": float(accuracy[best])}


def _fit_sgd(
    x: Tensor, y: Tensor, held_out: Tensor, classes: int, config: EvaluationConfig, seed: int, device: str
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Weight [D, K], bias [K] and what was chosen; the features stay where they are, batches travel."""
    lrs, decays = draw_settings(config.sgd_heads, seed)
    trials = fit_heads(x[~held_out], y[~held_out], lrs, decays, classes, config.sgd_epochs, seed, device)
    accuracy = (trials.predict(x[held_out]).cpu() == y[held_out]).double().mean(1)
    best = int(accuracy.argmax())
    final = fit_heads(x, y, lrs[best : best + 1], decays[best : best + 1], classes, config.sgd_epochs, seed, device)
    hyper = {"lr": lrs[best], "weight_decay": decays[best], "validation_top1": float(accuracy[best])}
    return final.weight[0].T, final.bias[0], hyper


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


def mean_class_accuracy(correct: Tensor, y: Tensor) -> float:
    """Mean over classes of the accuracy inside the class; `correct` [n] bool, labels y [n] int64."""
    _, inverse, count = torch.unique(y, return_inverse=True, return_counts=True)
    hits = torch.zeros(len(count), dtype=torch.float64).index_add_(0, inverse, correct.double())
    return float((hits / count).mean())


def _check(features: FeatureSet, split: str) -> None:
    if len(features) == 0:
        raise UnicError(f"the {split} set is empty; check the split of the data set")
    unlabeled = int((features.y < 0).sum())
    if unlabeled:
        raise UnicError(f"{unlabeled} images of the {split} set have no label; a probe needs a labeled data set")
