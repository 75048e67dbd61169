from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from unic_core.config import AugmentConfig
from unic_core.data.geometry import Box, Geometry, center, crop_and_flip, draw_geometry, random_box
from unic_core.draw import Draw

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**31))
def test_boxes_lie_in_the_image(height: int, width: int, seed: int) -> None:
    uniform = np.random.default_rng(seed).random(40).tolist()
    box = random_box(height, width, uniform, SCALE, RATIO)
    assert box.top >= 0
    assert box.left >= 0
    assert 0 < box.height <= height - box.top
    assert 0 < box.width <= width - box.left


def test_extreme_shapes_fall_back_to_the_center() -> None:
    assert random_box(10, 1000, [0.99] * 40, SCALE, RATIO) == Box(0, 493, 10, 13)
    assert random_box(1000, 10, [0.99] * 40, SCALE, RATIO) == Box(493, 0, 13, 10)


def test_boxes_have_the_distribution_of_torchvision() -> None:
    n, image = 4000, torch.empty(3, 60, 100)
    torch.manual_seed(1)
    transform = RandomResizedCrop(8, SCALE, RATIO)
    theirs = np.array([[p[k] for k in ("top", "left", "height", "width")] for p in _params(transform, image, n)])
    geometry = draw_geometry(Draw(0, 0, torch.arange(n)))
    ours = np.array([random_box(60, 100, g.crop, SCALE, RATIO) for g in geometry])
    error = 4 * theirs.std(0) * (2 / n) ** 0.5
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < error).all()
    assert np.allclose(ours.std(0), theirs.std(0), rtol=0.08)
    assert np.allclose(np.percentile(ours, [10, 50, 90], axis=0), np.percentile(theirs, [10, 50, 90], axis=0), atol=4)


def _params(transform: RandomResizedCrop, image: torch.Tensor, n: int) -> list[dict[str, int]]:
    return [transform.make_params([image]) for _ in range(n)]


def test_crop_and_flip_is_torchvisions_resized_crop() -> None:
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    config = AugmentConfig()
    (geometry,) = draw_geometry(Draw(3, 1, torch.tensor([5])))
    box = random_box(50, 70, geometry.crop, config.scale, config.ratio)
    expected = F.resized_crop(image, *box, [32, 32], InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(crop_and_flip(image, 32, config, Geometry(geometry.crop, 0.9)), expected)
    assert torch.equal(crop_and_flip(image, 32, config, Geometry(geometry.crop, 0.1)), expected.flip(-1))


def test_center_resizes_the_short_side_and_crops() -> None:
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    view = center(image, 32)
    resized = F.resize(image, [32], InterpolationMode.BICUBIC, antialias=True)
    assert resized.shape[1] == 32
    assert torch.equal(view, F.center_crop(resized, [32, 32]))
