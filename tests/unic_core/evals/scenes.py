"""Small scenes of colored rectangles with exact masks and depths, and a model that sees colors."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unic_core.config import DatasetConfig
from unic_core.data.pixels import encode
from unic_core.data.prepare import prepare_dataset
from unic_core.data.targets import encode_target
from unic_core.evals.dense import DenseModel
from unic_core.tokens import Tokens

COLORS = np.array([[40, 40, 40], [220, 40, 40], [40, 220, 40], [40, 40, 220]], np.uint8)
METERS = np.array([4.0, 1.0, 2.0, 3.0])
PATCH = 8


def color_scenes(root: Path, kind: Literal["mask", "depth"]) -> str:
    """URI of 12 train and 6 test scenes of 40 x 48 pixels; class and depth are told by the color."""
    folder = root / "scenes"
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for i in range(count):
            mask = np.zeros((40, 48), np.uint8)
            for value in rng.permutation([1, 2, 3]):
                top, left = rng.integers(0, 24), rng.integers(0, 32)
                mask[top : top + 16, left : left + 16] = value
            for name in ("images", f"{kind}s"):
                (folder / name / split).mkdir(parents=True, exist_ok=True)
            (folder / "images" / split / f"{i}.png").write_bytes(encode(COLORS[mask], "png"))
            target = mask if kind == "mask" else (1000 * METERS[mask]).astype(np.uint16)
            (folder / f"{kind}s" / split / f"{i}.png").write_bytes(encode_target(target))
    (folder / "classes.txt").write_text("floor\nred\ngreen\nblue\n")
    return prepare_dataset(DatasetConfig(name="scenes", source=f"dense:{folder}"), str(root))


def color_model(blind: bool = False) -> DenseModel:
    """Tokens are the mean colors of patches, or always the same."""

    def tokens(images: Tensor) -> Tokens:
        patch = F.avg_pool2d(images, PATCH).flatten(2).transpose(1, 2)
        patch = torch.ones_like(patch) if blind else patch
        return Tokens(patch.mean(1), patch)

    return DenseModel("colors", tokens, PATCH, torch.full((1, 3, 1, 1), 0.5))
