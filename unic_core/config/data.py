"""Data sets, what the student sees of them, and how they are read."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from unic_core.config.base import Fraction, Frozen, Name, NonNegative, Positive


class DatasetConfig(Frozen):
    """A data set to prepare. `source` is `folder:`, `list:`, `wds:`, `idx:`, `torchvision:` or `sklearn:` + place.

    Images with masks or depths: `dense:`, `ade20k:` or `nyu:` + place.
    Sets as their authors publish them: `official:NAME:` + place, with a name of `unic datasets`.
    """

    name: Name = Field(description="how probes and data.train refer to it")
    source: str = Field(
        pattern=r"^(folder|list|wds|idx|official|torchvision|sklearn|dense|ade20k|nyu):.+",
        description="kind and place of the images",
    )
    license: str = Field("unknown", description="license of the images")
    limit: dict[str, Positive] = Field({}, description="keep at most this many images of a split")
    splits: tuple[str, ...] | None = Field(None, description="prepare only these splits")
    corruption: Literal["none", "rotation", "blur", "noise", "contrast"] = Field(
        "none", description="fixed change of every image, for domain-shift sets"
    )
    short_side: Positive | None = Field(None, description="resize the short side to this many pixels")
    shard_bytes: Positive = Field(256 * 2**20, description="size of a shard")
    max_broken: int = Field(0, ge=0, description="how many unreadable images may be skipped")


class MixConfig(Frozen):
    """A share of the training images: a prepared data set by name or URI, passed `weight` times per epoch."""

    dataset: str = Field(description="name in `datasets`, or URI of a prepared data set")
    split: str = "train"
    weight: float = Field(1.0, gt=0, description="passes per epoch")


class JitterConfig(Frozen):
    """Color jitter as in torchvision, applied with probability `p`."""

    brightness: NonNegative = Field(0.4, description="largest change of the factor")
    contrast: NonNegative = Field(0.4, description="largest change of the factor")
    saturation: NonNegative = Field(0.2, description="largest change of the factor")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(0.1, description="largest shift, as a share of the color circle")
    p: Fraction = Field(0.8, description="probability")


class AugmentConfig(Frozen):
    """Section 1.7: crop and flip on the CPU in uint8, the rest batched on the device."""

    scale: tuple[Fraction, Fraction] = Field((0.08, 1.0), description="area of the crop, as a share of the image")
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="aspect ratio of the crop")
    flip: Fraction = Field(0.5, description="probability of a horizontal flip")
    jitter: JitterConfig = JitterConfig()
    grayscale: Fraction = Field(0.2, description="probability")
    blur: Fraction = Field(0.2, description="probability")
    blur_kernel: Positive = Field(9, description="pixels, odd")
    blur_sigma: tuple[float, float] = Field((0.1, 5.0), description="pixels, drawn uniformly")
    solarize: Fraction = Field(0.2, description="probability")
    solarize_threshold: Fraction = Field(0.5, description="brighter values are inverted")

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for key in ("scale", "ratio", "blur_sigma"):
            low, high = getattr(self, key)
            if not 0 < low <= high:
                raise ValueError(f"{key} must be two rising positive numbers, not {low}, {high}")
        if self.blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel must be odd, not {self.blur_kernel}")
        return self


class DataConfig(Frozen):
    """What the student sees, and how it is read."""

    train: tuple[MixConfig, ...] = Field((MixConfig(dataset="imagenet-1k"),), description="the training images")
    augment: AugmentConfig = AugmentConfig()
    workers: int = Field(8, ge=0, description="decoding processes per training process")
    cache: str | None = Field(None, description="directory for shards fetched from an object store")
    cache_bytes: int = Field(
        200 * 2**30, ge=0, description="size of the shard cache; 0: none, parts of shards are read"
    )
    chunk: Positive = Field(32, description="neighboring samples that stay together in the global shuffle")
    window: Positive = Field(16, description="chunks that are shuffled into each other")
    max_broken: int = Field(0, ge=0, description="unreadable images tolerated per epoch; each is replaced by another")
