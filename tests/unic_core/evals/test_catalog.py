"""The catalog against the protocol's facts, and checks of small copies in the official layouts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unic_core.config import DatasetConfig
from unic_core.errors import UnicError
from unic_core.evals.catalog import CATALOG
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
def test_entries_are_complete_and_their_sources_are_valid(entry: object) -> None:
    found = find_entry(entry.name)  # type: ignore[attr-defined]
    assert found.license
    assert found.obtain
    for part in found.source.split(" and ") if found.source else ():
        DatasetConfig(name=found.name, source=part.replace("PLACE", "/data"))


def test_an_image_folder_is_counted(tmp_path: Path) -> None:
    for split, n in (("train", 3), ("val", 2)):
        for label in ("cat", "dog"):
            for i in range(n):
                image(tmp_path / split / label / f"{i}.png")
    entry = replace(find_entry("imagenet-1k"), classes=2, counts={"train": 6, "val": 5})
    findings = {f.what: f for f in check_copy(entry, tmp_path)}
    assert findings["images of train"].ok
    assert findings["classes"].ok
    assert findings["images of val"][1:] == ("5", "4", False)


def test_lists_are_counted(tmp_path: Path) -> None:
    for split in ("train", "test"):
        image(tmp_path / "images" / f"{split}.png")
        (tmp_path / f"{split}.txt").write_text(f"images/{split}.png,0\n")
    entry = replace(find_entry("sun397"), classes=1, counts={"train": 1, "test": 1})
    assert all(finding.ok for finding in check_copy(entry, tmp_path))


def test_the_layout_of_eurosat_gets_a_fixed_test_split(tmp_path: Path) -> None:
    for label in ("Forest", "River"):
        for i in range(10):
            image(tmp_path / "eurosat" / "2750" / label / f"{label}_{i}.jpg")
    entry = replace(find_entry("eurosat"), classes=2, counts={"train": 14, "test": 6})
    assert all(finding.ok for finding in check_copy(entry, tmp_path))


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
    assert [(f.what, f.ok) for f in findings] == [("food-101/images", True), ("food-101/meta", False)]
    (tmp_path / "oxford-iiit-pet" / "images").mkdir(parents=True)
    (tmp_path / "oxford-iiit-pet" / "annotations").mkdir()
    with pytest.raises(UnicError, match="torchvision does not find OxfordIIITPet complete"):
        check_copy(find_entry("pets"), tmp_path)


def test_unknown_names_and_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnicError, match="no data set 'cats' in the catalog; choose from imagenet-1k"):
        find_entry("cats")
    with pytest.raises(UnicError, match=r"no folder .*nowhere; EuroSAT"):
        check_copy(find_entry("eurosat"), tmp_path / "nowhere")


def test_bundled_digits_need_no_place(tmp_path: Path) -> None:
    assert all(finding.ok for finding in check_copy(find_entry("digits"), tmp_path / "nowhere"))
