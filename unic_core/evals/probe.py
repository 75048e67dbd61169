"""The probes of section 3 on given features: a linear classifier with selected settings, and kNN."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unic_core.config import EvaluationConfig
from unic_core.errors import UnicError
from unic_core.evals.bootstrap import bootstrap_accuracy
from unic_core.evals.difference import pack_hits
from unic_core.evals.features import FeatureSet
from unic_core.evals.knn import classify_knn
from unic_core.evals.linear import Classifier, Head, fit_heads_of_seeds
from unic_core.evals.results import Protocol

HEADLINE_K = 20


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
    heads: tuple[Head, ...] = field(repr=False)  # one per seed
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
        correct = torch.stack([self.labels[head.predict(x).cpu()] == test.y for head in self.heads])
        seconds = self.seconds + time.perf_counter() - begin
        return self._scored(self.classifier, correct, test, _summary(self.heads, correct, self.seed), seconds)

    def _score_knn(self, test: FeatureSet) -> ProbeScore:
        begin = time.perf_counter()
        x, y = self.train.x.to(self.device), self.train.y.to(self.device)
        ks, temperature = self.config.knn_k, self.config.knn_temperature
        found = classify_knn(x, y, test.x.to(self.device), ks, temperature, len(self.labels))
        predicted = {k: self.labels[numbers.cpu()] for k, numbers in found.items()}
        best = HEADLINE_K if HEADLINE_K in ks else ks[0]
        hyper = {"k": float(best), "temperature": temperature}
        hyper |= {f"top1_k{k}": float((predicted[k] == test.y).double().mean()) for k in sorted(predicted)}
        return self._scored("knn", (predicted[best] == test.y)[None], test, hyper, time.perf_counter() - begin)

    def _scored(
        self, protocol: Protocol, correct: Tensor, test: FeatureSet, hyper: dict[str, float], seconds: float
    ) -> ProbeScore:
        """`correct` [S, n] bool, by seed; what is averaged and resampled is the share of seeds per image."""
        share = correct.double().mean(0)
        low, high = bootstrap_accuracy(correct, self.seed)
        return ProbeScore(
            protocol=protocol,
            top1=float(share.mean()),
            ci_low=low,
            ci_high=high,
            mean_class_accuracy=mean_class_accuracy(share, test.y),
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
        train: features; labels may be any numbers from 0.
        seed: of the split, the search, the order and the bootstrap; the first of `config.seeds` numbers in a row.
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
    heads = fit_heads_of_seeds(train.x, y, len(labels), config, seed, device, classifier)
    return FittedProbe(
        labels=labels,
        train=FeatureSet(train.x, y),
        heads=heads,
        seconds=time.perf_counter() - begin,
        config=config,
        seed=seed,
        device=device,
        classifier=classifier,
    )


def _summary(heads: Sequence[Head], correct: Tensor, seed: int) -> dict[str, float]:
    """What was chosen; for several seeds by seed, with the standard deviation of their top-1. `correct` [S, n]."""
    if len(heads) == 1:
        return heads[0].hyper
    top1 = correct.double().mean(1)
    hyper = {"seeds": float(len(heads)), "top1_std": float(top1.std())}
    for i, head in enumerate(heads):
        hyper |= {f"{key}_seed{seed + i}": value for key, value in {"top1": float(top1[i]), **head.hyper}.items()}
    return hyper


def mean_class_accuracy(correct: Tensor, y: Tensor) -> float:
    """Mean over classes of the accuracy inside the class; `correct` [n] bool or shares, labels y [n] int64."""
    _, inverse, count = torch.unique(y, return_inverse=True, return_counts=True)
    hits = torch.zeros(len(count), dtype=torch.float64).index_add_(0, inverse, correct.double())
    return float((hits / count).mean())


def _check(features: FeatureSet, split: str) -> None:
    if len(features) == 0:
        raise UnicError(f"the {split} set is empty; check the split of the data set")
    unlabeled = int((features.y < 0).sum())
    if unlabeled:
        raise UnicError(f"{unlabeled} images of the {split} set have no label; a probe needs a labeled data set")
