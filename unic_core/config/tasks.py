"""Evaluations beside the probes: segmentation, depth and zero-shot classification (sections 3.3 to 3.5)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from unic_core.config.base import Fraction, Frozen, NonNegative, Positive, label_of


class _Task(Frozen):
    """What all of them have."""

    dataset: str

    @property
    def label(self) -> str:
        """What the data set is called in results and files."""
        return label_of(self.dataset)


class SegmentationConfig(_Task):
    """A linear head for the masks of `dataset` on frozen patch tokens; defaults as published for ADE20K."""

    kind: ClassVar[Literal["segmentation"]] = "segmentation"
    metric: ClassVar[Literal["miou"]] = "miou"
    dataset: str = Field(description="name in `datasets`, or URI, of a data set with masks")
    train_split: str = "train"
    test_split: str = "test"
    steps: Positive = Field(80_000, description="of the head's training")
    batch: Positive = Field(8, description="crops per step")
    lr: float = Field(1e-3, gt=0, description="falls linearly to 0")
    weight_decay: NonNegative = 1e-4
    warmup: int = Field(1500, ge=0, description="steps of linear warm-up")
    short_side: Positive = Field(512, description="images are resized until a side has this many pixels ...")
    long_side: Positive = Field(2048, description="... or the long one this many")
    scale: tuple[float, float] = Field((0.5, 2.0), description="range of the random factor of that size in training")
    crop: Positive = Field(512, description="pixels per side of a training crop and of a test window")
    stride: Positive = Field(341, description="pixels between test windows")
    largest_class: Fraction = Field(0.75, description="of a training crop; crops with more are drawn again")
    test_scales: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1.0,), description="test sizes whose probabilities are averaged; [1.0, 1.32, 1.73] is the multi-scale test"
    )

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be two rising positive numbers, not {self.scale[0]}, {self.scale[1]}")
        if self.stride > self.crop:
            raise ValueError(f"stride {self.stride} is larger than crop {self.crop}: some pixels would not be seen")
        if not self.test_scales:
            raise ValueError("test_scales is empty; [1.0] is a test at one size")
        return self


class DepthConfig(_Task):
    """A linear head over depth bins on frozen tokens; defaults as published for NYU depth v2."""

    kind: ClassVar[Literal["depth"]] = "depth"
    metric: ClassVar[Literal["rmse"]] = "rmse"
    dataset: str = Field(description="name in `datasets`, or URI, of a data set with depths")
    train_split: str = "train"
    test_split: str = "test"
    steps: Positive = Field(38_400, description="of the head's training")
    batch: Positive = Field(16, description="crops per step")
    lr: float = Field(1e-4, gt=0, description="peak of the one-cycle schedule")
    weight_decay: NonNegative = 0.01
    crop: tuple[Positive, Positive] = Field((416, 544), description="height and width of a training crop")
    border: tuple[int, int, int, int] | None = Field(
        (45, 472, 43, 608), description="rows and columns of a training image that count (top, bottom, left, right)"
    )
    test_area: tuple[int, int, int, int] | None = Field(
        (45, 471, 41, 601), description="rows and columns of a test image that are scored: the crop of Eigen et al."
    )
    rotation: NonNegative = Field(2.5, description="largest angle in training, degrees")
    bins: Positive = Field(256, description="depths that the head weighs")
    smallest: float = Field(1e-3, gt=0, description="meters")
    largest: float = Field(10.0, gt=0, description="meters; what is farther is not scored")

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if self.smallest >= self.largest:
            raise ValueError(f"smallest {self.smallest} must be below largest {self.largest}")
        for key in ("border", "test_area"):
            area = getattr(self, key)
            if area and not (0 <= area[0] < area[1] and 0 <= area[2] < area[3]):
                raise ValueError(f"{key} must be top, bottom, left, right with top < bottom and left < right")
        return self


class ZeroShotConfig(_Task):
    """Classes by their names: the student's prediction of `teacher` against the embeddings of texts."""

    kind: ClassVar[Literal["zeroshot"]] = "zeroshot"
    metric: ClassVar[Literal["top1"]] = "top1"
    dataset: str = Field(description="name in `datasets`, or URI, of a labeled data set")
    test_split: str = "test"
    teacher: str = Field(description="name of a teacher that was trained together with a text encoder")
    text: str = Field(
        description="path or URI of safetensors: `text` [classes, E] and, where the cls token is not in the space "
        "of the texts, `projection` [D, E]"
    )


TaskConfig = SegmentationConfig | DepthConfig | ZeroShotConfig
