"""Which classes the student takes for which: the confusion matrix that Kubeflow shows beside an evaluation.

By the nearest neighbors among the stored features of the training images, which needs no classifier to be fitted
again. Large matrices say nothing on a page, so that only the most confused classes are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unic_core.config import RunConfig
from unic_core.evals.knn import classify_knn
from unic_core.evals.probe import HEADLINE_K
from workflows.features import devices, features_of, subjects
from workflows.subjects import open_split

MOST = 20


class Confusion(NamedTuple):
    """`matrix[i][j]`: how many test images of class `classes[i]` were taken for `classes[j]`."""

    classes: list[str]
    matrix: list[list[int]]


def confusion(config: RunConfig, root: str, group: str, datasets: dict[str, str], run: str) -> Confusion:
    """Of the student on the first test set of the data set `group`.

    Raises:
        UnicError: the data set or the student can't be read.
    """
    probe = next(p for p in config.evaluation.probes if p.fit == group)
    train, test = (
        open_split(config, root, datasets, probe.trained_on, probe.train_split),
        open_split(config, root, datasets, probe.dataset, probe.test_split),
    )
    _, _, load = next(subjects(config, run))  # the student comes first
    student = load(devices()[0])
    known, asked = features_of(config, root, student, train), features_of(config, root, student, test)
    labels, numbers = torch.unique(known.y, return_inverse=True)
    temperature = config.evaluation.knn_temperature
    found = classify_knn(known.x, numbers, asked.x, [HEADLINE_K], temperature, len(labels))[HEADLINE_K]
    counts = count(asked.y, labels[found])
    return most_confused(counts, [names(test.classes, label) for label in range(len(counts))])


def count(truth: Tensor, predicted: Tensor) -> Tensor:
    """[K, K] int64 from labels and predictions, both [n] int64 in [0, K)."""
    classes = int(torch.maximum(truth.max(), predicted.max())) + 1
    return torch.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)


def most_confused(counts: Tensor, classes: Sequence[str], most: int = MOST) -> Confusion:
    """The `most` classes with most mistakes, in the order of the classes; counts [K, K]."""
    wrong = counts.sum(1) + counts.sum(0) - 2 * counts.diagonal()
    kept = sorted(torch.argsort(wrong, descending=True, stable=True)[:most].tolist())
    return Confusion([classes[i] for i in kept], counts[kept][:, kept].tolist())


def names(classes: Sequence[str], label: int) -> str:
    """Name of a class; its number where it has none."""
    return classes[label] if label < len(classes) else str(label)
