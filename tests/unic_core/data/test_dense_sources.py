"""Data sets with masks or depths: read from their official layouts, stored, and read again."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unic_core.data.conftest import encoded, picture
from tests.unic_core.data.test_dataset import object_stores
from unic_core.config import DatasetConfig
from unic_core.data.dataset import ShardedDataset
from unic_core.data.decode import BrokenImageError
from unic_core.data.pairs import all_pairs
from unic_core.data.prepare import prepare_dataset
from unic_core.data.sources import open_source
from unic_core.data.targets import decode_target, encode_target
from unic_core.errors import UnicError

__all__ = ["object_stores"]  # a fixture


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_target(values))


def save_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(picture(seed)))


def mask(seed: int, values: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, values, (40, 48)).astype(np.uint8)


@pytest.fixture
def ade(tmp_path: Path) -> Path:
    """ADEChallengeData2016 with three and two images; the masks hold 0 to 150."""
    root = tmp_path / "ADEChallengeData2016"
    for split, short, count in (("training", "train", 3), ("validation", "val", 2)):
        for i in range(1, count + 1):
            save_image(root / "images" / split / f"ADE_{short}_{i:08d}.jpg", i)
            save(root / "annotations" / split / f"ADE_{short}_{i:08d}.png", mask(i, 151))
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName", *(f"{i}\t0.1\t10\t2\t0\tname {i}, other" for i in range(1, 151))]
    (root / "objectInfo150.txt").write_text("\n".join(lines) + "\n")
    (root / "sceneCategories.txt").write_text("ADE_train_00000001 airport\n")
    return root


@pytest.fixture
def nyu(tmp_path: Path) -> Path:
    """NYU depth v2 as lists of `image depth focal`."""
    root = tmp_path / "nyu"
    for split, scene, count in (("train", "kitchen_0028b", 3), ("test", "bathroom", 2)):
        lines = []
        for i in range(count):
            save_image(root / scene / f"rgb_{i:05d}.jpg", i)
            save(root / scene / f"sync_depth_{i:05d}.png", (mask(i, 200).astype(np.uint16)) * 50)
            lines.append(f"/{scene}/rgb_{i:05d}.jpg /{scene}/sync_depth_{i:05d}.png 518.8579")
        (root / f"nyu_{split}.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for split, count in (("train", 3), ("test", 1)):
        for i in range(count):
            save_image(root / "images" / split / f"{i}.jpg", i)
            save(root / "masks" / split / f"{i}.png", np.where(mask(i) == 3, 255, mask(i)).astype(np.uint8))
    (root / "classes.txt").write_text("floor\nwall\nroof\n")
    return root


def test_ade20k_counts_from_zero_and_ignores_other(ade: Path) -> None:
    source = open_source(f"ade20k:{ade}")
    assert {name: len(split.keys) for name, split in source.splits.items()} == {"training": 3, "validation": 2}
    assert (source.target, len(source.classes), source.classes[0]) == ("mask", 150, "name 1, other")
    split = source.splits["training"]
    assert split.read_target is not None
    for row in split.rows:
        stored = decode_target(split.read_target(row))
        official = decode_target((ade / row[1]).read_bytes()).astype(int)
        assert np.array_equal(stored, np.where(official == 0, 255, official - 1))


def test_nyu_lists_give_millimeters(nyu: Path, tmp_path: Path) -> None:
    config = DatasetConfig(name="nyu", source=f"nyu:{nyu}")
    dataset = ShardedDataset(prepare_dataset(config, str(tmp_path)), "train")
    assert (len(dataset), dataset.target, dataset.classes) == (3, "depth", ())
    found = sorted(float(pair.target.sum()) for pair in all_pairs(dataset))
    assert found == pytest.approx(sorted(float(mask(i, 200).sum()) * 0.05 for i in range(3)))
    assert next(all_pairs(dataset)).target.dtype == torch.float32


def test_a_tree_survives_preparation_and_any_tool_can_read_its_shards(tree: Path, tmp_path: Path) -> None:
    config = DatasetConfig(name="rooms", source=f"dense:{tree}")
    uri = prepare_dataset(config, str(tmp_path))
    dataset = ShardedDataset(uri, "train")
    assert (dataset.target, dataset.classes, dataset.labels.tolist()) == ("mask", ("floor", "wall", "roof"), [-1] * 3)
    for index, pair in enumerate(all_pairs(dataset)):
        number = int(dataset.key(index)[-1])  # keys end in the name of the file
        assert np.array_equal(pair.target, decode_target((tree / "masks" / "train" / f"{number}.png").read_bytes()))
        assert dataset.read(index) == (tree / "images" / "train" / f"{number}.jpg").read_bytes()
    with tarfile.open(Path(uri) / "train-00000.tar") as tar:
        names = tar.getnames()
    assert sorted(name.partition(".")[2] for name in names) == ["jpg"] * 3 + ["target.png"] * 3
    assert prepare_dataset(config, str(tmp_path)) == uri


def test_workers_read_the_same_pairs(tree: Path, tmp_path: Path) -> None:
    dataset = ShardedDataset(prepare_dataset(DatasetConfig(name="r", source=f"dense:{tree}"), str(tmp_path)), "train")
    here, there = list(all_pairs(dataset)), list(all_pairs(dataset, workers=2))
    assert all(a.image.equal(b.image) and a.target.equal(b.target) for a, b in zip(here, there, strict=True))


def test_a_damaged_target_is_noticed(tree: Path, tmp_path: Path) -> None:
    uri = prepare_dataset(DatasetConfig(name="r", source=f"dense:{tree}"), str(tmp_path))
    shard = Path(uri) / "test-00000.tar"
    data = bytearray(shard.read_bytes())
    data[data.rindex(b"IDAT") + 10] ^= 1
    shard.write_bytes(data)
    dataset = ShardedDataset(uri, "test")
    assert dataset.read(0)
    with pytest.raises(UnicError, match="is damaged"):
        dataset.read_target(0)


def test_a_target_of_another_size_counts_as_broken(tree: Path, tmp_path: Path) -> None:
    save(tree / "masks" / "train" / "0.png", np.zeros((10, 10), np.uint8))
    with pytest.raises(UnicError, match=r"images/train/0\.jpg \(it has 40 x 48 pixels, but its target 10 x 10\)"):
        prepare_dataset(DatasetConfig(name="r", source=f"dense:{tree}"), str(tmp_path))
    uri = prepare_dataset(DatasetConfig(name="r", source=f"dense:{tree}", max_broken=1), str(tmp_path))
    assert len(ShardedDataset(uri, "train")) == 2


def test_mistakes_are_sentences(tree: Path, ade: Path, nyu: Path, tmp_path: Path) -> None:
    def refused(source: str, match: str, **settings: object) -> None:
        config = DatasetConfig.model_validate({"name": "r", "source": source, **settings})
        with pytest.raises(UnicError, match=match):
            prepare_dataset(config, str(tmp_path))

    refused(f"dense:{tree}", "short_side and rotation", short_side=20)
    refused(f"dense:{nyu}", "neither masks/ nor depths/")
    (nyu / "bathroom" / "rgb_00000.jpg").unlink()
    refused(f"nyu:{nyu}", r"names bathroom/rgb_00000\.jpg, which does not exist")
    (nyu / "nyu_test.txt").write_text("one\n")
    refused(f"nyu:{nyu}", "write `image depth focal`")
    save(tree / "masks" / "train" / "0.png", np.full((40, 48), 3, np.uint8))
    refused(f"dense:{tree}", r"masks/train/0\.png has the value 3; .* below 3, or 255")
    (tree / "masks" / "train" / "0.png").unlink()
    refused(f"dense:{tree}", r"has images/train/0\.jpg, but no masks/train/0\.png")
    (tree / "classes.txt").unlink()
    refused(f"dense:{tree}", r"no classes\.txt")
    save(ade / "annotations" / "training" / "ADE_train_00000001.png", np.full((40, 48), 200, np.uint8))
    refused(f"ade20k:{ade}", "has the value 199")


def test_a_set_without_targets_says_so(prepared: str) -> None:
    with pytest.raises(UnicError, match="neither masks nor depths"):
        ShardedDataset(prepared, "train").read_target(0)


@pytest.mark.parametrize(("data", "match"), [(b"nothing", "unreadable"), (encoded(picture(0), "PNG"), "mode RGB")])
def test_targets_have_one_channel(data: bytes, match: str) -> None:
    with pytest.raises(BrokenImageError, match=match):
        decode_target(data)


def test_a_palette_holds_class_numbers() -> None:
    image = Image.fromarray(mask(0)).convert("P")
    image.putpalette([i % 256 for i in range(768)])
    image.putdata(mask(0).flatten().tolist())
    assert np.array_equal(decode_target(encoded(image, "PNG")), mask(0))


@pytest.mark.parametrize("cache_bytes", [0, 2**30], ids=["in parts", "cached"])
def test_targets_are_read_from_an_object_store(
    cache_bytes: int, object_stores: None, tree: Path, tmp_path: Path
) -> None:
    uri = prepare_dataset(DatasetConfig(name="r", source=f"dense:{tree}"), str(tmp_path))
    local = ShardedDataset(uri, "train")
    remote = ShardedDataset(f"object://{uri}", "train", tmp_path / "cache", cache_bytes)
    for i in (2, 0, 1, 2):
        assert remote.read(i) == local.read(i)
        assert remote.read_target(i) == local.read_target(i)
    damaged = bytearray((Path(uri) / "train-00000.tar").read_bytes())
    damaged[damaged.index(b"IDAT") + 10] ^= 1  # of the first target
    copies = [path for path in (tmp_path / "cache").glob("*") if not path.suffix]
    for copy in copies:  # a damaged copy is noticed, dropped and read again
        copy.write_bytes(damaged)
    again = ShardedDataset(f"object://{uri}", "train", tmp_path / "cache", cache_bytes)
    assert again.read_target(0) == local.read_target(0)
