"""Segmentation and depth on composites of Fashion-MNIST: a pretrained teacher against the same network with random
weights.

Masks and depths are exact. The garments of a class lie at a depth of their own and the background has none, so both
tasks ask what is where.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.features_of import fashion_source
from unic_core.config import DatasetConfig, DepthConfig, SegmentationConfig, TeacherConfig
from unic_core.data.dataset import ShardedDataset
from unic_core.data.pixels import encode
from unic_core.data.prepare import prepare_dataset
from unic_core.data.sources import open_source
from unic_core.data.targets import encode_target
from unic_core.evals.dense import DenseModel, DenseScore
from unic_core.evals.depth import evaluate_depth
from unic_core.evals.segmentation import evaluate_segmentation
from unic_core.provenance import versions
from unic_core.teachers import load_teacher

SIDE, GARMENT, GARMENTS = 160, 96, 2  # pixels of a composite and of a garment, garments in a composite
VISIBLE = 24  # gray values below are no part of a garment
DEPTHS = np.round(1000 * np.linspace(1.0, 8.2, 10)).astype(np.uint16)  # millimeters of each class
CLASSES = ("background", "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
SEGMENTATION = SegmentationConfig(
    dataset="masks", steps=150, lr=5e-3, warmup=15, short_side=160, long_side=640, scale=(0.75, 1.5), crop=128,
    stride=85, largest_class=0.9,
)  # fmt: skip
DEPTH = DepthConfig(
    dataset="depths", steps=400, batch=8, lr=0.03, crop=(128, 128), border=None, test_area=None, rotation=2.5
)
Gray = NDArray[np.uint8]


class Composite(NamedTuple):
    """image: [H, W, 3]. mask: [H, W], 0 is the background, 1 to 10 are classes. depth: millimeters, 0: background."""

    image: Gray
    mask: Gray
    depth: NDArray[np.uint16]


def composites(images: Gray, labels: NDArray[np.int64], count: int, seed: int) -> Iterator[Composite]:
    """`count` scenes of garments [n, 28, 28] with classes [n] before a smooth colored background.

    Garments may cover each other; the later one is in front in image and targets alike. Their tint is random, so that
    color tells nothing about the class.
    """
    rng = np.random.default_rng(seed)
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 110, (5, 5, 3), dtype=np.uint8))
        scene = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.float64)
        mask, depth = np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE), np.uint16)
        for index in rng.integers(0, len(images), GARMENTS):
            large = Image.fromarray(images[index]).resize((GARMENT, GARMENT), Image.Resampling.BICUBIC)
            garment, (top, left) = np.asarray(large), rng.integers(0, SIDE - GARMENT + 1, 2)
            seen = garment > VISIBLE
            place = (slice(top, top + GARMENT), slice(left, left + GARMENT))
            tint = rng.uniform(0.6, 1.0, 3)
            scene[place][seen] = garment[seen][:, None] * tint
            mask[place][seen] = labels[index] + 1
            depth[place][seen] = DEPTHS[labels[index]]
        yield Composite(np.clip(np.rint(scene), 0, 255).astype(np.uint8), mask, depth)


def write_composites(root: Path, counts: dict[str, int]) -> dict[str, str]:
    """URIs of the data sets `masks` and `depths` of the same scenes; test scenes are of test garments."""
    source = open_source(fashion_source())
    folders = {"masks": root / "masks", "depths": root / "depths"}
    for number, (split, count) in enumerate(counts.items()):
        garments = source.splits[split]
        pixels = np.asarray(garments.rows, dtype=np.uint8)
        for kind, folder in folders.items():
            for name in ("images", kind):
                (folder / name / split).mkdir(parents=True)
        for i, scene in enumerate(composites(pixels, garments.labels, count, seed=number)):
            targets = {"masks": encode_target(scene.mask), "depths": encode_target(scene.depth)}
            for kind, folder in folders.items():
                (folder / "images" / split / f"{i:05d}.png").write_bytes(encode(scene.image, "png"))
                (folder / kind / split / f"{i:05d}.png").write_bytes(targets[kind])
    (folders["masks"] / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return {kind: prepare_dataset(DatasetConfig(name=kind, source=f"dense:{folder}"), str(root), workers=1)
            for kind, folder in folders.items()}  # fmt: skip


def load_models(model: str) -> Iterator[DenseModel]:
    """The pretrained teacher and the same network with random weights."""
    for name, weights in (("pretrained", None), ("random", "random://0")):
        teacher = load_teacher(TeacherConfig(name=name, model=model, weights=weights), any_size=True)
        yield DenseModel(name, teacher, teacher.stride, teacher.mean)


def compare(uris: dict[str, str], model: str) -> dict[str, dict[str, DenseScore]]:
    """Scores by task, then by model."""
    found: dict[str, dict[str, DenseScore]] = {"segmentation": {}, "depth": {}}
    for encoder in load_models(model):
        masks, depths = ([ShardedDataset(uris[kind], s) for s in ("train", "test")] for kind in ("masks", "depths"))
        found["segmentation"][encoder.name] = evaluate_segmentation(encoder, *masks, SEGMENTATION, seed=0, workers=0)
        found["depth"][encoder.name] = evaluate_depth(encoder, *depths, DEPTH, seed=0, workers=0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="efficientnet_lite0", help="a teacher of the registry")
    parser.add_argument("--train", type=int, default=300, help="training composites")
    parser.add_argument("--test", type=int, default=60, help="test composites")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="unic-benchmark-") as root:
        uris = write_composites(Path(root), {"train": given.train, "test": given.test})
        scores = compare(uris, given.model)
    lines = []
    for task, found in scores.items():
        for name, score in found.items():
            shown = f"{score.metric} {score.value:.3f} ({score.low:.3f} to {score.high:.3f})"
            print(f"{task:13} {name:11} {shown}, {score.seconds:.0f} s")
            lines.append({"task": task, "model": name, score.metric: score.value, "interval": [score.low, score.high]})
    print(json.dumps({"benchmark": "dense", "model": given.model, "scores": lines, "versions": versions()}))


if __name__ == "__main__":
    main()
