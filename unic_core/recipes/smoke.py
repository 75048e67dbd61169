"""The smallest run that still passes through everything: seconds on one core."""

from __future__ import annotations

from unic_core.config import (
    ClusterConfig,
    DataConfig,
    DatasetConfig,
    EmaConfig,
    EvaluationConfig,
    LadderConfig,
    MixConfig,
    OptimizerConfig,
    ProbeConfig,
    RunConfig,
    StudentConfig,
    TeacherConfig,
    TrainingConfig,
)


def smoke() -> RunConfig:
    """Twelve steps on scikit-learn's digits with one small teacher."""
    return RunConfig(
        name="smoke",
        student=StudentConfig(model="vit_tiny_patch16_224", image_size=32, patch_size=8, width=32, depth=2, heads=2),
        teachers=(TeacherConfig(name="lite0", model="efficientnet_lite0", image_size=32),),
        projector=LadderConfig(hidden=16, hidden_last=32),
        standardizer=EmaConfig(eps=0.01),  # many channels of the teacher are silent on such small images
        datasets=(DatasetConfig(name="digits", source="sklearn:digits", license="CC BY 4.0"),),
        data=DataConfig(train=(MixConfig(dataset="digits"),), workers=0),
        optimizer=OptimizerConfig(lr=1e-3, warmup=2),
        training=TrainingConfig(epochs=None, steps=12, batch=32, precision="fp32", log_every=2, checkpoint_every=5),
        cluster=ClusterConfig(workers=1, gpus_per_worker=0, cpus_per_worker=1, threads=1),
        evaluation=EvaluationConfig(probes=(ProbeConfig(dataset="digits"),), c_values=(1e-2, 1.0, 1e2), knn_k=(10, 20)),
    )
