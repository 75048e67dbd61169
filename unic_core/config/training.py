"""Optimization, the processes it runs in, evaluation and tracking."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from unic_core.config.base import Fraction, Frozen, NonNegative, Positive


class OptimizerConfig(Frozen):
    """AdamW with warm-up and cosine (section 1.6)."""

    lr: float = Field(3e-4, gt=0, description="per 256 images of the global batch")
    min_lr: NonNegative = Field(1e-6, description="at the end; not scaled by the batch")
    warmup: NonNegative = Field(10, description="epochs of linear warm-up; steps when training.steps is set")
    weight_decay: NonNegative = Field(0.03, description="not applied to biases and vectors")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.99), description="of AdamW")
    eps: float = Field(1e-8, gt=0, description="of AdamW")
    clip_norm: float | None = Field(None, gt=0, description="clip the global gradient norm")


class TrainingConfig(Frozen):
    """Length, batch and numerics. Exactly one of `epochs` and `steps` is set."""

    epochs: float | None = Field(200, gt=0, description="passes over the training images")
    steps: Positive | None = Field(None, description="optimizer steps, instead of epochs")
    batch: Positive = Field(512, description="images per optimizer step over all processes")
    accumulate: Positive = Field(1, description="micro-batches per optimizer step")
    precision: Literal["fp32", "bf16", "fp16"] = Field("bf16", description="of autocast; weights stay in fp32")
    compile: bool = Field(False, description="torch.compile the repeated blocks")
    log_every: Positive = Field(20, description="steps between metrics")
    checkpoint_every: Positive = Field(1000, description="steps between checkpoints")
    keep_last: Positive = Field(2, description="newest checkpoints that are kept")
    keep_every: Positive | None = Field(None, description="also keep every checkpoint at a multiple of this step")
    keep_best: Literal["loss"] | None = Field(None, description="also keep the checkpoint with the lowest value of it")

    @model_validator(mode="after")
    def _length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("set exactly one of epochs and steps (the other one to null)")
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} is not divisible by accumulate {self.accumulate}")
        return self


class ClusterConfig(Frozen):
    """The processes of Ray Train."""

    workers: Positive = Field(1, description="processes that train together")
    min_workers: Positive | None = Field(
        None, description="go on with as few processes while machines are missing, and grow back; null waits for all"
    )
    gpus_per_worker: NonNegative = Field(1, description="0 trains on the CPU")
    cpus_per_worker: float = Field(8, gt=0, description="CPU cores reserved for each process")
    threads: Positive | None = Field(None, description="CPU threads of torch in each process")
    resize_s: Positive = Field(
        60, description="seconds between looks for machines to grow back to; each growth restarts"
    )
    max_failures: int = Field(3, ge=0, description="restarts after a lost or failed worker; preemptions do not count")
    stop_s: Positive = Field(60, description="seconds that a stopped run may take to write its last checkpoint")
    timeout_s: Positive = Field(600, description="a collective that takes longer ends the worker group")

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is more than workers {self.workers}")
        return self


class ProbeConfig(Frozen):
    """One row of the comparison: probe on `dataset`, trained on the train split of `train_on` (default: itself)."""

    dataset: str = Field(description="what is tested on")
    train_on: str | None = Field(None, description="data set of the classifier's training images")
    train_split: str = "train"
    test_split: str = "test"
    group: Literal["transfer", "shift"] = Field(
        "transfer", description="transfer sets and shift sets are averaged separately"
    )


class EvaluationConfig(Frozen):
    """Frozen features, then logistic regression and kNN (section 3)."""

    probes: tuple[ProbeConfig, ...] = Field((), description="data sets of the comparison")
    token: Literal["cls", "patch", "both"] = Field("cls", description="cls token, mean patch token, or both joined")
    batch: Positive = Field(128, description="images per forward pass")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the feature extraction")
    c_values: tuple[float, ...] = Field(
        (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6),
        description="grid of inverse L2 strengths",
    )
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="share of train per class that selects C")
    max_iterations: Positive = Field(2000, description="of the logistic regression")
    knn_k: tuple[Positive, ...] = Field((10, 20, 100, 200), description="numbers of neighbors")
    knn_temperature: float = Field(0.07, gt=0, description="of the votes")
    random_student: bool = Field(True, description="also probe the student's architecture with random weights")

    @model_validator(mode="after")
    def _grids(self) -> Self:
        if not self.c_values or min(self.c_values) <= 0:
            raise ValueError("c_values must be positive numbers, at least one")
        if not self.knn_k:
            raise ValueError("knn_k must name at least one k")
        return self


class TrackingConfig(Frozen):
    """Names in MLflow; its address is MLFLOW_TRACKING_URI."""

    experiment: str = Field("unic", description="name of the experiment")
    registered_model: str = Field("unic-student", description="name in the model registry")
    system_metrics: bool = Field(True, description="record CPU, memory and GPU")
