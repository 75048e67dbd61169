"""Real features for benchmarks and parity tests: a pretrained teacher on images that any machine can get."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from unic_core.config import DatasetConfig, TeacherConfig
from unic_core.data.dataset import ShardedDataset
from unic_core.data.eval_loader import eval_batches
from unic_core.data.prepare import prepare_dataset
from unic_core.evals.features import FeatureSet, extract
from unic_core.teachers import load_teacher
from workflows.demo_data import find_fashion_mnist

DATA = Path(".unic/data").absolute()  # where the demo keeps its images, too


def fashion_source() -> str:
    """Fashion-MNIST as a source for `prepare`; fetched once."""
    return f"idx:{find_fashion_mnist(DATA)}"


def teacher_features(
    source: str, model: str, limit: dict[str, int], pixels: int = 64, corruption: str = "none"
) -> dict[str, FeatureSet]:
    """cls features of every split that `limit` names, in fp32 on whatever device there is."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher = load_teacher(TeacherConfig(name="teacher", model=model, image_size=pixels), None, device, torch.float32)
    with tempfile.TemporaryDirectory(prefix="unic-benchmark-") as root:
        config = DatasetConfig.model_validate(
            {"name": "images", "source": source, "limit": limit, "splits": tuple(limit), "corruption": corruption}
        )
        uri = prepare_dataset(config, root)
        return {
            split: extract(teacher, eval_batches(ShardedDataset(uri, split), pixels, 128), device=device)
            for split in limit
        }


def separable(n: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    """Features [n, width] of well separated Gaussian classes with a power-law spectrum, and labels [n]."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(classes, width, generator=generator) * 2
    y = torch.arange(n) % classes
    spectrum = torch.arange(1, width + 1) ** -0.5
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    x = (centers[y] + torch.randn(n, width, generator=generator)) * spectrum @ rotation
    return x.contiguous(), y
