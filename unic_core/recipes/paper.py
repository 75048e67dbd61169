"""The published models: UNIC (ViT-B/16, four teachers) and UNIC-L (ViT-L/14, two teachers).

Both train on a prepared data set called `imagenet-1k`; point `datasets.0.source` at the images.
"""

from __future__ import annotations

from unic_core.config import (
    ClusterConfig,
    DatasetConfig,
    EvaluationConfig,
    LadderConfig,
    ProbeConfig,
    RunConfig,
    StudentConfig,
    TeacherConfig,
    TrainingConfig,
)

_IMAGENET = DatasetConfig(
    name="imagenet-1k",
    source="folder:imagenet",
    license="ImageNet terms of access (non-commercial research)",
    splits=("train", "val"),
)
_PROBE = EvaluationConfig(probes=(ProbeConfig(dataset="imagenet-1k", test_split="val"),), precision="bf16")


def paper_vitb16() -> RunConfig:
    """UNIC: every default of the config is the paper's; four ViT-B/16 teachers, 200 epochs, 4 GPUs of 32 GB.

    Source: arXiv 2408.05088, sections 3 and 4 and the published training arguments; bf16 instead of fp16.
    """
    return RunConfig(
        name="paper-vitb16",
        teachers=(
            TeacherConfig(name="dino", model="dino_vitb16"),
            TeacherConfig(name="ibot", model="ibot_vitb16"),
            TeacherConfig(name="deit3", model="deit3_vitb16"),
            TeacherConfig(name="dbotft", model="dbot_ft_vitb16"),
        ),
        datasets=(_IMAGENET,),
        cluster=ClusterConfig(workers=4),
        evaluation=_PROBE,
    )


def unic_l() -> RunConfig:
    """UNIC-L: ViT-L/14 from DINOv2-g/14 with registers and MetaCLIP-H/14 at 224 pixels.

    The hidden sizes of its ladder are not published; these reproduce the size of the released file.
    Continue at 336 pixels with `student.image_size=336` and a new name.
    """
    return RunConfig(
        name="unic-l",
        student=StudentConfig(model="vit_large_patch14_dinov2", image_size=224),
        teachers=(
            TeacherConfig(name="dinov2g", model="dinov2_vitg14_reg4", image_size=224),
            TeacherConfig(name="metacliph", model="metaclip_vith14"),
        ),
        projector=LadderConfig(hidden=1024, hidden_last=3072),
        training=TrainingConfig(batch=512, compile=True),
        datasets=(_IMAGENET,),
        cluster=ClusterConfig(workers=8),
        evaluation=_PROBE,
    )
