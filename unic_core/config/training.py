"""Optimization, the processes it runs in, and tracking."""

from __future__ import annotations

from typing import Literal, Self

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


class TrackingConfig(Frozen):
    """Names in MLflow; its address is MLFLOW_TRACKING_URI."""

    experiment: str = Field("unic", description="name of the experiment")
    registered_model: str = Field("unic-student", description="name in the model registry")
    system_metrics: bool = Field(True, description="record CPU, memory and GPU")
