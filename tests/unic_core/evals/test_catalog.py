"""The catalog against the protocol's facts, and checks of small copies in the official layouts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unic_core.data.official_trees import TREES
from unic_core.config import DatasetConfig
from unic_core.data.layouts import LAYOUTS
from unic_core.errors import UnicError
from unic_core.evals.catalog import CATALOG, CatalogEntry
from unic_core.evals.check import check_copy, find_entry

TRANSFER = {
    "imagenet-1k", *(f"imagenet-cog-l{level}" for level in range(1, 6)), "aircraft", "cars196", "dtd", "eurosat",
    "flowers102", "pets", "food101", "sun397", "inat2018", "inat2019",
}  # fmt: skip


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)


def test_the_sixteen_transfer_sets_are_there_and_names_are_unique() -> None:
    names = [entry.name for entry in CATALOG]
    assert len(names) == len(set(names))
    assert set(names) >= TRANSFER
    assert len(TRANSFER) == 16


@pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.name)
def test_entries_are_complete_and_their_sources_are_valid(entry: CatalogEntry) -> None:
    found = find_entry(entry.name)
    assert found.license
    assert found.obtain
    if found.source is not None:
        DatasetConfig(name=found.name, source=found.source.replace("PLACE", "/data"))


@pytest.mark.parametrize("entry", [e for e in CATALOG if e.name in TRANSFER], ids=lambda entry: entry.name)
def test_transfer_sets_are_read_from_their_official_layouts(entry: CatalogEntry) -> None:
    assert entry.source == f"official:{entry.name}:PLACE"
    assert entry.name in LAYOUTS


def test_an_image_folder_is_counted(tmp_path: Path) -> None:
    for split, n in (("train", 3), ("val", 2)):
        for label in ("cat", "dog"):
            for i in range(n):
                image(tmp_path / split / label / f"{i}.png")
    findings = {f.what: f for f in check_copy(find_entry("image-folder"), tmp_path)}
    assert findings["images of train"][1:] == ("any", "6", True)
    assert findings["images of val"].ok


def test_a_copy_is_compared_with_the_counts_of_the_protocol(tmp_path: Path) -> None:
    TREES["pets"][1](tmp_path)
    small = replace(find_entry("pets"), classes=2, counts={"train": 2, "test": 1})
    assert all(finding.ok for finding in check_copy(small, tmp_path))
    findings = {f.what: f for f in check_copy(find_entry("pets"), tmp_path)}
    assert findings["annotations/test.txt"].ok
    assert findings["images of train"][1:] == ("3,680", "2", False)
    assert findings["classes"][1:] == ("37", "2", False)


def test_missing_images_are_counted_and_the_first_one_is_named(tmp_path: Path) -> None:
    TREES["food101"][1](tmp_path)
    (tmp_path / "food-101/images/waffles/13.jpg").unlink()
    entry = replace(find_entry("food101"), classes=2, counts={"train": 2, "test": 1})
    wrong = [finding for finding in check_copy(entry, tmp_path) if not finding.ok]
    assert [f.what for f in wrong] == ["images/waffles/13.jpg (test)", "images of test"]
    assert wrong[1][1:3] == ("1", "0")


def test_dense_sets_are_counted(tmp_path: Path) -> None:
    mask = np.ones((8, 8), np.uint8)
    for split in ("training", "validation"):
        image(tmp_path / "ade" / "images" / split / "1.jpg")
        (tmp_path / "ade" / "annotations" / split).mkdir(parents=True)
        Image.fromarray(mask).save(tmp_path / "ade" / "annotations" / split / "1.png")
    entry = replace(find_entry("ade20k"), counts={"training": 1, "validation": 1})
    assert all(finding.ok for finding in check_copy(entry, tmp_path / "ade"))
    for name in ("train", "test"):
        image(tmp_path / "nyu" / "den" / "rgb.jpg")
        Image.fromarray(mask.astype(np.uint16)).save(tmp_path / "nyu" / "den" / "depth.png")
        (tmp_path / "nyu" / f"nyu_{name}.txt").write_text("den/rgb.jpg den/depth.png 518.9\n")
    entry = replace(find_entry("nyu-depth-v2"), counts={"train": 1, "test": 1})
    assert all(finding.ok for finding in check_copy(entry, tmp_path / "nyu"))


def test_missing_files_are_named_and_nothing_is_fetched(tmp_path: Path) -> None:
    image(tmp_path / "food-101" / "images" / "pie" / "1.jpg")
    findings = check_copy(find_entry("food101"), tmp_path)
    assert [(f.what, f.ok) for f in findings] == [("images", True), ("meta/train.txt", False), ("meta/test.txt", False)]


def test_unknown_names_and_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnicError, match="no data set 'cats' in the catalog; choose from imagenet-1k"):
        find_entry("cats")
    with pytest.raises(UnicError, match=r"no folder .*nowhere; EuroSAT"):
        check_copy(find_entry("eurosat"), tmp_path / "nowhere")


def test_bundled_digits_need_no_place(tmp_path: Path) -> None:
    assert all(finding.ok for finding in check_copy(find_entry("digits"), tmp_path / "nowhere"))
