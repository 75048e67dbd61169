"""Published data sets read from small copies in their official layouts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.unic_core.data.official_trees import PICTURE, TREES, eurosat, put, write
from unic_core.config import DatasetConfig
from unic_core.data.dataset import ShardedDataset
from unic_core.data.layouts import EUROSAT_CLASSES, EUROSAT_TEST, LAYOUTS, imagenet_synsets
from unic_core.data.listing import Source
from unic_core.data.official import take_inventory
from unic_core.data.prepare import prepare_dataset
from unic_core.data.sources import open_source
from unic_core.errors import UnicError


def named(source: Source) -> dict[str, dict[str, str]]:
    """Class names by key, split by split."""
    return {
        split: {key: source.classes[label] for key, label in zip(found.keys, found.labels, strict=True)}
        for split, found in source.splits.items()
    }


@pytest.mark.parametrize("tree", TREES)
def test_every_layout_gives_its_images_splits_and_classes(tree: str, tmp_path: Path) -> None:
    name, build = TREES[tree]
    expected = build(tmp_path)
    source = open_source(f"official:{name}:{tmp_path}")
    assert named(source) == expected
    assert all(split.load(0) == PICTURE for split in source.splits.values())
    assert open_source(f"official:{name}:{tmp_path}").content == source.content
    assert list(source.classes) == sorted(source.classes)


def test_every_layout_has_a_tree_here() -> None:
    covered = {name for name, _ in TREES.values()} | {"eurosat"}
    same_reader = {f"imagenet-cog-l{level}" for level in (1, 2, 4, 5)} | {"imagenet-a", "imagenet-sketch"}
    assert set(LAYOUTS) == covered | same_reader


def test_eurosat_has_one_test_split_for_everybody(tmp_path: Path) -> None:
    images = eurosat(tmp_path)
    source = open_source(f"official:eurosat:{tmp_path}")
    test = source.splits["test"]
    assert Counter(test.labels.tolist()) == dict.fromkeys(range(10), EUROSAT_TEST)
    assert source.classes == EUROSAT_CLASSES
    assert {key for split in source.splits.values() for key in split.keys} == {k for ks in images.values() for k in ks}
    assert not set(test.keys) & set(source.splits["train"].keys)
    moved = tmp_path / "elsewhere"
    (tmp_path / "2750").rename(moved)
    assert list(open_source(f"official:eurosat:{moved}").splits["test"].keys) == list(test.keys)
    (moved / "River" / "River_1.jpg").unlink()
    few = list((moved / "Forest").iterdir())[EUROSAT_TEST:]
    for path in few:
        path.unlink()
    with pytest.raises(UnicError, match="EuroSAT has no more than 810 images of Forest"):
        open_source(f"official:eurosat:{moved}")


def test_labels_of_shift_sets_are_those_of_imagenet(tmp_path: Path) -> None:
    synsets = imagenet_synsets()
    assert len(synsets) == 1000
    assert synsets == sorted(synsets)
    for name in ("imagenet-r", "imagenet-v2"):
        TREES[name][1](tmp_path / name)
        source = open_source(f"official:{name}:{tmp_path / name}")
        assert list(source.classes) == synsets
        expected = [synsets.index(label) for label in named(source)["test"].values()]
        assert source.splits["test"].labels.tolist() == expected


def test_prepared_shards_hold_the_labels_of_the_lists(tmp_path: Path) -> None:
    TREES["pets"][1](tmp_path / "copy")
    config = DatasetConfig(name="pets", source=f"official:pets:{tmp_path / 'copy'}")
    uri = prepare_dataset(config, str(tmp_path / "root"), workers=1)
    train = ShardedDataset(uri, "train")
    assert sorted(train.labels.tolist()) == [0, 1]
    assert ShardedDataset(uri, "test").labels.tolist() == [1]
    assert np.array_equal(np.unique(train.labels), [0, 1])


def test_images_that_a_list_names_must_be_there(tmp_path: Path) -> None:
    TREES["food101"][1](tmp_path)
    (tmp_path / "food-101/images/waffles/12.jpg").unlink()
    with pytest.raises(UnicError, match=r"lacks 1 images of food101 \(train\), the first one images/waffles/12\.jpg"):
        open_source(f"official:food101:{tmp_path}")
    found = take_inventory("food101", str(tmp_path))
    assert (found.missing("train"), found.missing("test")) == (["images/waffles/12.jpg"], [])


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    for source, sentence in (
        ("official:dtd", "lacks a place; write official:NAME:PLACE"),
        (f"official:cats:{tmp_path}", "no official layout is called 'cats'; choose from aircraft"),
        (
            f"official:dtd:{tmp_path}/nowhere",
            r"nowhere is no copy of dtd: images, .* missing; `unic datasets show dtd`",
        ),
    ):
        with pytest.raises(UnicError, match=sentence):
            open_source(source)
    put(tmp_path, "images/banded/banded_0001.jpg")
    with pytest.raises(
        UnicError, match=r"no copy of dtd: labels/train1\.txt, labels/val1\.txt, labels/test1\.txt missing"
    ):
        open_source(f"official:dtd:{tmp_path}")


def test_lists_that_can_not_be_understood_are_refused(tmp_path: Path) -> None:
    TREES["inat2019"][1](tmp_path)
    write(tmp_path, "val2019.json", '{"images": [{"id": 1, "file_name": "x.jpg"}], "annotations": []}')
    with pytest.raises(UnicError, match=r"the lists of inat2019 at .* can't be understood"):
        open_source(f"official:inat2019:{tmp_path}")
    write(tmp_path, "val2019.json", "{")
    with pytest.raises(UnicError, match="can't be understood"):
        open_source(f"official:inat2019:{tmp_path}")
    TREES["flowers102"][1](tmp_path / "flowers")
    (tmp_path / "flowers" / "setid.mat").write_bytes(b"no matlab file at all" * 20)
    with pytest.raises(UnicError, match="can't be understood"):
        open_source(f"official:flowers102:{tmp_path / 'flowers'}")


def test_flat_validation_images_of_imagenet_need_the_development_kit(tmp_path: Path) -> None:
    TREES["imagenet-1k"][1](tmp_path)
    put(tmp_path, "val/ILSVRC2012_val_00000002.JPEG")
    with pytest.raises(UnicError, match="put the development kit beside them"):
        open_source(f"official:imagenet-1k:{tmp_path}")
