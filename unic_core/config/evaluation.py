"""What is probed, and how (section 3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from unic_core.config.base import Frozen, Positive, label_of
from unic_core.config.data import DatasetConfig
from unic_core.config.tasks import DepthConfig, SegmentationConfig, TaskConfig, ZeroShotConfig
from unic_core.errors import UnicError


class ProbeConfig(Frozen):
    """One row of the comparison: probe on `dataset`, trained on the train split of `train_on` (default: itself)."""

    dataset: str = Field(description="what is tested on")
    train_on: str | None = Field(None, description="data set of the classifier's training images")
    train_split: str = "train"
    test_split: str = "test"
    classifier: Literal["logreg", "sgd"] = Field(
        "logreg", description="logistic regression, or for large sets SGD; the same for all probes with this train_on"
    )
    group: Literal["transfer", "shift"] = Field(
        "transfer", description="transfer sets and shift sets are averaged separately"
    )

    @property
    def trained_on(self) -> str:
        """The data set of the training images."""
        return self.train_on or self.dataset

    @property
    def label(self) -> str:
        """What the tested data set is called in results."""
        return label_of(self.dataset)

    @property
    def fit(self) -> str:
        """What the classifier is called, in files and as a step: like the data set that it is trained on."""
        return label_of(self.trained_on)


class EvaluationConfig(Frozen):
    """Frozen features, then a linear classifier and kNN (section 3)."""

    probes: tuple[ProbeConfig, ...] = Field((), description="data sets of the comparison")
    segmentation: tuple[SegmentationConfig, ...] = Field((), description="data sets with masks")
    depth: tuple[DepthConfig, ...] = Field((), description="data sets with depths")
    zeroshot: tuple[ZeroShotConfig, ...] = Field((), description="data sets classified by the names of their classes")
    token: Literal["cls", "patch", "both"] = Field("cls", description="cls token, mean patch token, or both joined")
    batch: Positive = Field(128, description="images per forward pass")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the feature extraction")
    c_values: tuple[float, ...] = Field(
        (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6),
        description="grid of inverse L2 strengths",
    )
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="share of train per class that selects C")
    c_search: Literal["grid", "optuna"] = Field(
        "grid", description="try all of c_values, or `c_trials` between their smallest and largest by Optuna's TPE"
    )
    c_trials: Positive = Field(40, description="trials of Optuna")
    seeds: Positive = Field(
        1, description="linear classifiers per probe, each with its own validation split and search; their mean counts"
    )
    max_iterations: Positive = Field(2000, description="of the logistic regression")
    sgd_heads: Positive = Field(40, description="pairs of learning rate and weight decay that SGD tries")
    sgd_epochs: Positive = Field(100, description="passes of SGD over the features")
    knn_k: tuple[Positive, ...] = Field((10, 20, 100, 200), description="numbers of neighbors")
    knn_temperature: float = Field(0.07, gt=0, description="of the votes")
    knn_every: float | None = Field(
        None, gt=0, description="epochs between kNN scores during training, on the first of `probes`; null for none"
    )
    random_student: bool = Field(True, description="also probe the student's architecture with random weights")

    @property
    def tasks(self) -> dict[str, TaskConfig]:
        """What is evaluated beside the probes, by the names of its steps: `segmentation-<label>` and so on."""
        every: tuple[TaskConfig, ...] = (*self.segmentation, *self.depth, *self.zeroshot)
        return {f"{task.kind}-{task.label}": task for task in every}

    @model_validator(mode="after")
    def _grids(self) -> Self:
        if not self.c_values or min(self.c_values) <= 0:
            raise ValueError("c_values must be positive numbers, at least one")
        if not self.knn_k:
            raise ValueError("knn_k must name at least one k")
        if self.knn_every is not None and not self.probes:
            raise ValueError("knn_every is set, but probes is empty: name a data set to probe")
        for key in ("segmentation", "depth", "zeroshot"):
            names = [task.label for task in getattr(self, key)]
            if len(set(names)) < len(names):
                raise ValueError(f"{key} names a data set twice; name every one once")
        return self

    @model_validator(mode="after")
    def _one_result_per_set(self) -> Self:
        """Results are told apart by the tested set, and what is trained on one set is trained once."""
        tested: set[str] = set()
        first: dict[str, ProbeConfig] = {}
        for probe in self.probes:
            if probe.label in tested:
                raise ValueError(f"probes: {probe.label!r} is tested twice; keep one of the two")
            tested.add(probe.label)
            other = first.setdefault(probe.fit, probe)
            for key in ("trained_on", "train_split", "classifier"):
                if getattr(probe, key) != getattr(other, key):
                    raise ValueError(
                        f"probes: {other.dataset!r} and {probe.dataset!r} share the classifier trained on "
                        f"{probe.fit!r}, but differ in {key}; give both the same"
                    )
        return self


def check_probes(probes: Sequence[ProbeConfig], datasets: Sequence[DatasetConfig]) -> None:
    """UnicError where a probe names a set or split that `datasets` does not prepare; a URI stands for itself."""
    for probe in probes:
        for name, split in ((probe.trained_on, probe.train_split), (probe.dataset, probe.test_split)):
            _check_set("evaluation.probes", name, split, datasets)


def check_tasks(tasks: Iterable[TaskConfig], datasets: Sequence[DatasetConfig]) -> None:
    """The same for what is evaluated beside the probes."""
    for task in tasks:
        for split in (task.test_split,) if task.kind == "zeroshot" else (task.train_split, task.test_split):
            _check_set(f"evaluation.{task.kind}", task.dataset, split, datasets)


def _check_set(key: str, name: str, split: str, datasets: Sequence[DatasetConfig]) -> None:
    known = {dataset.name: dataset.splits for dataset in datasets}
    if name not in known and "/" not in name:
        raise UnicError(
            f"{key} names {name!r}, which is not in datasets; choose from {', '.join(known) or 'none'}, add it, or "
            "give the URI of a prepared data set"
        )
    splits = known.get(name)
    if splits is not None and split not in splits:
        raise UnicError(
            f"{key} needs the split {split!r} of {name}, but datasets prepares only {', '.join(splits)}; add it to "
            "splits"
        )
