"""The composites that stand in for ADE20K and NYU: their targets are exact, and pretraining shows on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.dense import DEPTHS, compare, composites, write_composites
from unic_core.errors import UnicError


def test_targets_are_exact() -> None:
    bright = np.full((2, 28, 28), 255, np.uint8)
    bright[1, 10:] = 0  # the second garment fills the upper part of its square
    labels = np.array([3, 7])
    for scene in composites(bright, labels, count=5, seed=0):
        assert set(np.unique(scene.mask).tolist()) <= {0, 4, 8}
        for label in labels:
            assert (scene.depth[scene.mask == label + 1] == DEPTHS[label]).all()
        assert not scene.depth[scene.mask == 0].any()
        assert np.median(scene.image[scene.mask > 0]) > 150  # tints leave at least 60 % of white
        assert np.median(scene.image[scene.mask == 0]) < 110  # the background is darker
    again = [next(composites(bright, labels, 1, seed=0)).image for _ in range(2)]
    assert np.array_equal(*again)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_pretrained_teacher_beats_random_weights(tmp_path: Path) -> None:
    try:
        uris = write_composites(tmp_path, {"train": 300, "test": 60})
    except UnicError as error:
        pytest.skip(str(error))
    scores = compare(uris, "efficientnet_lite0")
    miou, rmse = scores["segmentation"], scores["depth"]
    assert miou["pretrained"].low > 1.5 * miou["random"].high
    assert rmse["pretrained"].high < rmse["random"].low
