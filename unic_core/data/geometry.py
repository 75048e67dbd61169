"""Crop, flip and resize of one image, in uint8 on the CPU, without hidden randomness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from unic_core.config import AugmentConfig
from unic_core.draw import Draw

ATTEMPTS = 10  # of RandomResizedCrop
_PER_ATTEMPT = 4  # area, aspect ratio, top, left


class Box(NamedTuple):
    """A crop in pixels."""

    top: int
    left: int
    height: int
    width: int


class Geometry(NamedTuple):
    """The uniform random numbers of one image's geometry."""

    crop: Sequence[float]
    flip: float


def draw_geometry(draw: Draw) -> list[Geometry]:
    """The random numbers of every image of a batch."""
    crops = draw.uniform("crop", ATTEMPTS * _PER_ATTEMPT).tolist()
    flips = draw.uniform("flip")[:, 0].tolist()
    return [Geometry(crop, flip) for crop, flip in zip(crops, flips, strict=True)]


def random_box(
    height: int, width: int, uniform: Sequence[float], scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """The box of torchvision's RandomResizedCrop (Szegedy et al., 2015) for given random numbers.

    Up to ten boxes with area in `scale` and log-uniform aspect ratio in `ratio` are tried; if none fits, the
    largest central box with an allowed aspect ratio is taken.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(ATTEMPTS):
        area, aspect, top, left = uniform[attempt * _PER_ATTEMPT : (attempt + 1) * _PER_ATTEMPT]
        target = height * width * (scale[0] + (scale[1] - scale[0]) * area)
        shape = math.exp(low + (high - low) * aspect)
        w, h = round(math.sqrt(target * shape)), round(math.sqrt(target / shape))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(top * (height - h + 1)), int(left * (width - w + 1)), h, w)
    if width / height < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif width / height > ratio[1]:
        w, h = round(height * ratio[1]), height
    else:
        w, h = width, height
    w, h = max(1, min(w, width)), max(1, min(h, height))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def crop_and_flip(image: Tensor, size: int, config: AugmentConfig, geometry: Geometry) -> Tensor:
    """A random resized crop, perhaps mirrored: uint8 [3, H, W] to [3, size, size]."""
    box = random_box(image.shape[1], image.shape[2], geometry.crop, config.scale, config.ratio)
    crop = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
    resized: Tensor = F.resize(crop, [size, size], InterpolationMode.BICUBIC, antialias=True)
    return resized.flip(-1) if geometry.flip < config.flip else resized


def center(image: Tensor, size: int) -> Tensor:
    """The evaluation view: short side to `size` (bicubic, antialias), center crop: uint8 [3, size, size]."""
    resized = F.resize(image, [size], InterpolationMode.BICUBIC, antialias=True)
    return torch.clone(F.center_crop(resized, [size, size]), memory_format=torch.contiguous_format)
