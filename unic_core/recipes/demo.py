"""Two pretrained EfficientNet-Lite teachers, a small ViT, Fashion-MNIST: the whole method on two CPU cores."""

from __future__ import annotations

from typing import Literal

from unic_core.config import (
    AugmentConfig,
    ClusterConfig,
    DataConfig,
    DatasetConfig,
    EvaluationConfig,
    JitterConfig,
    LadderConfig,
    MixConfig,
    OptimizerConfig,
    ProbeConfig,
    RunConfig,
    StudentConfig,
    TeacherConfig,
    TrainingConfig,
)

_SHIFTS: tuple[Literal["rotation", "blur", "noise", "contrast"], ...] = ("rotation", "blur", "noise", "contrast")


def fashion_demo() -> RunConfig:
    """Three to five minutes of training on two cores. `datasets.*.source` must point at the Fashion-MNIST files.

    The augmentation keeps the crop and the flip; grayscale clothing gains nothing from color.
    """
    source, license_ = "idx:fashion-mnist", "MIT"
    probe_limit = {"train": 4000, "test": 2000}
    return RunConfig(
        name="fashion-demo",
        student=StudentConfig(model="vit_tiny_patch16_224", image_size=64, width=192, depth=6, heads=3, drop_path=0.0),
        teachers=(
            TeacherConfig(name="lite0", model="efficientnet_lite0", image_size=64),
            TeacherConfig(name="lite2", model="efficientnet_lite2", image_size=64),
        ),
        projector=LadderConfig(hidden=96, hidden_last=384),
        datasets=(
            DatasetConfig(name="fashion-images", source=source, license=license_, splits=("train",)),
            DatasetConfig(name="fashion-mnist", source=source, license=license_, limit=probe_limit),
            *(
                DatasetConfig(
                    name=f"fashion-{shift}",
                    source=source,
                    license=license_,
                    splits=("test",),
                    limit={"test": 1000},
                    corruption=shift,
                )
                for shift in _SHIFTS
            ),
            DatasetConfig(name="digits", source="sklearn:digits", license="CC BY 4.0"),
        ),
        data=DataConfig(
            train=(MixConfig(dataset="fashion-images"),),
            augment=AugmentConfig(
                scale=(0.4, 1.0), jitter=JitterConfig(saturation=0.0, hue=0.0), grayscale=0.0, solarize=0.0
            ),
            workers=0,
        ),
        optimizer=OptimizerConfig(lr=2e-3, warmup=30),
        training=TrainingConfig(epochs=None, steps=240, batch=128, precision="fp32", log_every=10, checkpoint_every=60),
        cluster=ClusterConfig(workers=2, gpus_per_worker=0, cpus_per_worker=1, threads=1),
        evaluation=EvaluationConfig(
            probes=(
                ProbeConfig(dataset="fashion-mnist"),
                ProbeConfig(dataset="digits"),
                *(ProbeConfig(dataset=f"fashion-{s}", train_on="fashion-mnist", group="shift") for s in _SHIFTS),
            )
        ),
    )
