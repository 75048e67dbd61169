"""The whole run."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from unic_core.config.base import Frozen, Name
from unic_core.config.data import DataConfig, DatasetConfig
from unic_core.config.evaluation import EvaluationConfig
from unic_core.config.models import LadderConfig, ProjectorConfig, StudentConfig, TeacherConfig
from unic_core.config.objective import (
    BalancerConfig,
    EmaConfig,
    FixedConfig,
    LossConfig,
    LossRankedConfig,
    StandardizerConfig,
)
from unic_core.config.training import (
    ClusterConfig,
    OptimizerConfig,
    TrackingConfig,
    TrainingConfig,
)


class RunConfig(Frozen):
    """Everything that defines a run."""

    name: Name = Field(description="names the run's directory; the same name continues")
    seed: int = Field(22, ge=0, lt=2**31, description="of all randomness")
    student: StudentConfig = StudentConfig()
    teachers: tuple[TeacherConfig, ...] = Field(min_length=1, description="what is distilled")
    projector: ProjectorConfig = LadderConfig()
    standardizer: StandardizerConfig = EmaConfig()
    loss: LossConfig = LossConfig()
    balancer: BalancerConfig = LossRankedConfig()
    datasets: tuple[DatasetConfig, ...] = Field((), description="data sets that `prepare` makes")
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    cluster: ClusterConfig = ClusterConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [teacher.name for teacher in self.teachers]
        for what, values in (("teachers", names), ("datasets", [d.name for d in self.datasets])):
            twice = {value for value in values if values.count(value) > 1}
            if twice:
                raise ValueError(f"{what}: the name {sorted(twice)[0]!r} is used twice")
        if isinstance(self.balancer, FixedConfig):
            wrong = set(self.balancer.weights) ^ set(names)
            if wrong:
                raise ValueError(f"balancer.weights must name each teacher once; {sorted(wrong)[0]!r} does not match")
            if not any(self.balancer.weights.values()):
                raise ValueError("balancer.weights are all 0; give one teacher a weight")
        for task in self.evaluation.zeroshot:
            if task.teacher not in names:
                raise ValueError(
                    f"evaluation.zeroshot names the teacher {task.teacher!r}; choose from {', '.join(names)}"
                )
        if self.training.batch // self.training.accumulate < self.cluster.workers:
            raise ValueError(
                f"training.batch {self.training.batch} in {self.training.accumulate} micro-batches leaves some of "
                f"{self.cluster.workers} workers without an image; raise training.batch or lower cluster.workers"
            )
        return self
