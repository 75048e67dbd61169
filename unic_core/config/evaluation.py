"""What is probed, and how (section 3)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from unic_core.config.base import Frozen, Positive
from unic_core.config.tasks import DepthConfig, SegmentationConfig, TaskConfig, ZeroShotConfig


class ProbeConfig(Frozen):
    """One row of the comparison: probe on `dataset`, trained on the train split of `train_on` (default: itself)."""

    dataset: str = Field(description="what is tested on")
    train_on: str | None = Field(None, description="data set of the classifier's training images")
    train_split: str = "train"
    test_split: str = "test"
    classifier: Literal["logreg", "sgd"] = Field(
        "logreg", description="logistic regression, or for large sets SGD; that of the first probe with this train_on"
    )
    group: Literal["transfer", "shift"] = Field(
        "transfer", description="transfer sets and shift sets are averaged separately"
    )


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
