"""The official layouts in one table: which files a copy must have, and how they tell the images of each split.

Splits are those of the transfer protocol (section 3.1): `train` is everything that a classifier may see, which holds
its own validation part out; the published validation images of ImageNet and iNaturalist are called `val`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from unic_core.data.listing import is_image
from unic_core.data.subset import balanced
from unic_core.errors import UnicError
from unic_core.storage import Store

Images = list[tuple[str, str]]  # (key, class)

EUROSAT_CLASSES = (
    "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop", "Residential",
    "River", "SeaLake",
)  # fmt: skip
EUROSAT_TEST = 810  # test images of each class
_EUROSAT_SEED = 22
_DEVKIT = "ILSVRC2012_devkit_t12/data"


class Copy:
    """The files of one copy, by their names below the root of the layout."""

    def __init__(self, store: Store, sizes: Mapping[str, int]) -> None:
        self.store, self.sizes = store, sizes

    def find(self, names: str) -> str | None:
        """The first of the names `a|b|...` that is a file, or a folder with files in it; `a*`: any that starts so."""
        for name in names.split("|"):
            start = name[:-1] if name.endswith("*") else f"{name}/"
            if name in self.sizes or any(key.startswith(start) for key in self.sizes):
                return name
        return None

    def lines(self, names: str) -> list[str]:
        """Lines of a text file, without empty ones."""
        text = self._read(names).decode("utf-8-sig")
        return [line.strip() for line in text.splitlines() if line.strip()]

    def matrix(self, names: str) -> dict[str, Any]:
        """Variables of a MATLAB file."""
        from scipy.io import loadmat

        variables: dict[str, Any] = loadmat(io.BytesIO(self._read(names)), squeeze_me=True)
        return variables

    def document(self, names: str) -> Any:
        """A JSON file."""
        return json.loads(self._read(names))

    def images(self, folder: str = "") -> list[str]:
        """Keys of all images below a folder."""
        return [key for key in self.sizes if key.startswith(folder) and is_image(key)]

    def _read(self, names: str) -> bytes:
        return self.store.get(self.find(names) or names)


class Listing(NamedTuple):
    """Images of every split; `classes` in the order of their labels, sorted by name where it is None."""

    splits: dict[str, Images]
    classes: Sequence[str] | None = None


@dataclass(frozen=True)
class Layout:
    """`needs`: files or folders that must be there, alternatives as `a|b`. `roots`: what archives unpack to."""

    needs: tuple[str, ...]
    read: Callable[[Copy], Listing]
    roots: tuple[str, ...] = ("",)


# ---------------------------------------------------------------- readers


def _aircraft(copy: Copy) -> Listing:
    def images(part: str) -> Images:
        rows = (line.partition(" ") for line in copy.lines(f"images_variant_{part}.txt"))
        return [(f"images/{image}.jpg", variant.strip()) for image, _, variant in rows]

    return Listing({"train": images("trainval"), "test": images("test")})


def _cars(copy: Copy) -> Listing:
    """One list of all images with a mark on test images, or a development kit with two lists."""
    splits: dict[str, Images] = {"train": [], "test": []}
    if copy.find("cars_annos.mat"):
        for row in np.atleast_1d(copy.matrix("cars_annos.mat")["annotations"]):
            split = "test" if int(row["test"]) else "train"
            splits[split].append((str(row["relative_im_path"]), f"{int(row['class']):03d}"))
        return Listing(splits)
    for split, names in (("train", "cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = np.atleast_1d(copy.matrix(f"devkit/{names}|{names}")["annotations"])
        splits[split] = [(f"cars_{split}/{row['fname']}", f"{int(row['class']):03d}") for row in rows]
    return Listing(splits)


def _dtd(copy: Copy) -> Listing:
    def images(*parts: str) -> Images:
        lines = (line for part in parts for line in copy.lines(f"labels/{part}.txt"))
        return [(f"images/{line}", line.partition("/")[0]) for line in lines]

    return Listing({"train": images("train1", "val1"), "test": images("test1")})


def _eurosat(copy: Copy) -> Listing:
    """No split is published: the same 810 images of every class are the test images everywhere."""
    keys = [key for key in sorted(copy.images()) if key.partition("/")[0] in EUROSAT_CLASSES]
    names = [key.partition("/")[0] for key in keys]
    labels = np.array([EUROSAT_CLASSES.index(name) for name in names], dtype=np.int64)
    few = [name for i, name in enumerate(EUROSAT_CLASSES) if int((labels == i).sum()) <= EUROSAT_TEST]
    if few:
        raise UnicError(f"EuroSAT has no more than {EUROSAT_TEST} images of {', '.join(few)}; unpack it again")
    test = set(balanced(labels, EUROSAT_TEST * len(EUROSAT_CLASSES), _EUROSAT_SEED).tolist())
    splits: dict[str, Images] = {"train": [], "test": []}
    for i, (key, name) in enumerate(zip(keys, names, strict=True)):
        splits["test" if i in test else "train"].append((key, name))
    return Listing(splits, EUROSAT_CLASSES)


def _flowers(copy: Copy) -> Listing:
    labels = np.atleast_1d(copy.matrix("imagelabels.mat")["labels"])
    ids = {name: np.atleast_1d(value) for name, value in copy.matrix("setid.mat").items() if not name.startswith("__")}

    def images(*parts: str) -> Images:
        numbers = (int(number) for part in parts for number in ids[part])
        return [(f"jpg/image_{number:05d}.jpg", f"{int(labels[number - 1]):03d}") for number in numbers]

    return Listing({"train": images("trnid", "valid"), "test": images("tstid")})


def _pets(copy: Copy) -> Listing:
    def images(part: str) -> Images:
        lines = (line for line in copy.lines(f"annotations/{part}.txt") if not line.startswith("#"))
        names = (line.split()[0] for line in lines)
        return [(f"images/{name}.jpg", name.rpartition("_")[0]) for name in names]

    return Listing({"train": images("trainval"), "test": images("test")})


def _food(copy: Copy) -> Listing:
    def images(part: str) -> Images:
        return [(f"images/{line}.jpg", line.partition("/")[0]) for line in copy.lines(f"meta/{part}.txt")]

    return Listing({"train": images("train"), "test": images("test")})


def _sun(copy: Copy) -> Listing:
    def images(part: str) -> Images:
        lines = [line.lstrip("/") for line in copy.lines(f"{part}_01.txt|Partitions/{part}_01.txt")]
        return [(f"SUN397/{line}", PurePosixPath(line).parent.as_posix()) for line in lines]

    return Listing({"train": images("Training"), "test": images("Testing")})


def _inaturalist(year: int, copy: Copy) -> Listing:
    """COCO-like JSON: `images` with `id` and `file_name`, `annotations` with `image_id` and `category_id`."""
    splits = {}
    for split in ("train", "val"):
        data = copy.document(f"{split}{year}.json")
        category = {row["image_id"]: int(row["category_id"]) for row in data["annotations"]}
        splits[split] = [(row["file_name"], f"{category[row['id']]:05d}") for row in data["images"]]
    return Listing(splits)


def _imagenet(copy: Copy) -> Listing:
    """Folders of synsets; validation images in folders too, or flat with the development kit."""
    train = [(key, key.split("/")[1]) for key in copy.images("train/") if key.count("/") >= 2]
    classes = sorted({label for _, label in train})
    found = copy.images("val/")
    flat = sorted(key for key in found if key.count("/") == 1)
    val = [(key, key.split("/")[1]) for key in found if key.count("/") >= 2]
    if flat:
        if not copy.find(f"{_DEVKIT}/meta.mat"):
            raise UnicError(
                f"the validation images of ImageNet are not in class folders; put the development kit beside them "
                f"({_DEVKIT}), which has their labels"
            )
        synsets = np.atleast_1d(copy.matrix(f"{_DEVKIT}/meta.mat")["synsets"])
        synset = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        truth = copy.lines(f"{_DEVKIT}/ILSVRC2012_validation_ground_truth.txt")
        val += [(key, synset[int(number)]) for key, number in zip(flat, truth, strict=True)]
    return Listing({"train": train, "val": val}, classes)


def _cog(level: int, copy: Copy) -> Listing:
    """The published splits are pickles, which are never read: as text, one `synset/image` a line."""

    def images(part: str) -> Images:
        return [(f"images/{line}", line.partition("/")[0]) for line in copy.lines(f"L{level}_{part}.txt")]

    return Listing({"train": images("train"), "test": images("test")})


def imagenet_synsets() -> list[str]:
    """The thousand synsets of ImageNet-1K in the order of its labels."""
    from timm.data import ImageNetInfo

    return [str(name) for name in ImageNetInfo().label_names()]


def _synset_folders(copy: Copy) -> Listing:
    """A test set of ImageNet's classes, or of some of them: labels are those of ImageNet-1K."""
    synsets = imagenet_synsets()
    known = set(synsets)
    return Listing({"test": [(k, k.partition("/")[0]) for k in copy.images() if k.partition("/")[0] in known]}, synsets)


def _numbered_folders(copy: Copy) -> Listing:
    """Folders `0` to `999`: the labels themselves."""
    synsets = imagenet_synsets()
    pairs = ((key, key.partition("/")[0]) for key in copy.images())
    return Listing({"test": [(key, synsets[int(folder)]) for key, folder in pairs if folder.isdecimal()]}, synsets)


def _unpacked(*folders: str) -> tuple[str, ...]:
    return ("", *(f"{folder}/" for folder in folders))


LAYOUTS: dict[str, Layout] = {
    "aircraft": Layout(("images", "images_variant_trainval.txt", "images_variant_test.txt"), _aircraft,
                       _unpacked("data", "fgvc-aircraft-2013b/data")),
    "cars196": Layout(("cars_annos.mat|devkit/cars_train_annos.mat|cars_train_annos.mat",
                       "cars_annos.mat|devkit/cars_test_annos_withlabels.mat|cars_test_annos_withlabels.mat",
                       "car_ims|cars_train", "car_ims|cars_test"), _cars, _unpacked("stanford_cars")),
    "dtd": Layout(("images", "labels/train1.txt", "labels/val1.txt", "labels/test1.txt"), _dtd,
                  _unpacked("dtd", "dtd/dtd")),
    "eurosat": Layout(EUROSAT_CLASSES, _eurosat, _unpacked("2750", "EuroSAT_RGB", "EuroSAT", "eurosat/2750")),
    "flowers102": Layout(("jpg", "imagelabels.mat", "setid.mat"), _flowers, _unpacked("flowers-102")),
    "pets": Layout(("images", "annotations/trainval.txt", "annotations/test.txt"), _pets, _unpacked("oxford-iiit-pet")),
    "food101": Layout(("images", "meta/train.txt", "meta/test.txt"), _food, _unpacked("food-101")),
    "sun397": Layout(("SUN397", "Training_01.txt|Partitions/Training_01.txt",
                      "Testing_01.txt|Partitions/Testing_01.txt"), _sun),
    **{f"inat{year}": Layout((f"train{year}.json", f"val{year}.json", f"train_val{year}"), partial(_inaturalist, year))
       for year in (2018, 2019)},
    "imagenet-1k": Layout(("train", "val"), _imagenet),
    **{f"imagenet-cog-l{level}": Layout(("images", f"L{level}_train.txt", f"L{level}_test.txt"), partial(_cog, level))
       for level in range(1, 6)},
    "imagenet-v2": Layout(("0", "999"), _numbered_folders, _unpacked("imagenetv2-matched-frequency-format-val",
                                                                    "imagenetv2-matched-frequency")),
    "imagenet-r": Layout(("n01*",), _synset_folders, _unpacked("imagenet-r")),
    "imagenet-a": Layout(("n01*",), _synset_folders, _unpacked("imagenet-a")),
    "imagenet-sketch": Layout(("n01*",), _synset_folders, _unpacked("sketch", "imagenet-sketch")),
}  # fmt: skip
