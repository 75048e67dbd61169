"""Small image folders and a prepared data set, made once per session or per test."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unic_core.config import DatasetConfig
from unic_core.data.dataset import ShardedDataset
from unic_core.data.prepare import prepare_dataset


def picture(seed: int, height: int = 40, width: int = 48) -> Image.Image:
    """A smooth colored image that survives JPEG well."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi, (3, 3))
    waves = [np.sin(6 * x + p[0]) + np.sin(5 * y + p[1]) + np.sin(4 * (x + y) + p[2]) for p in phase]
    return Image.fromarray(np.uint8(np.clip(np.stack(waves, -1) * 40 + 128, 0, 255)))


def encoded(image: Image.Image, format_: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """make_folder({"train/cat": 3}): a folder with that many JPEGs in each place."""

    def make(counts: dict[str, int], name: str = "images") -> Path:
        root = tmp_path / name
        seed = 0
        for place, count in counts.items():
            (root / place).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                (root / place / f"{i:03d}.jpg").write_bytes(encoded(picture(seed)))
                seed += 1
        return root

    return make


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of 60 train and 10 test images of sizes around 40 x 48, in shards of about 20 KB."""
    root = tmp_path_factory.mktemp("prepared")
    for split, count in (("train", 60), ("test", 10)):
        for i in range(count):
            folder = root / "images" / split / ("even", "odd")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            image = picture(i + 1000 * len(split), 32 + i % 9, 48 - i % 7)
            (folder / f"{i:03d}.jpg").write_bytes(encoded(image))
    config = DatasetConfig(name="waves", source=f"folder:{root}/images", shard_bytes=20_000)
    return prepare_dataset(config, str(root))


@pytest.fixture
def train(prepared: str) -> ShardedDataset:
    return ShardedDataset(prepared, "train")
