"""The data sets of the comparison in one table: what they are, how they are scored, how to obtain and check them.

Counts are those of the transfer protocol (section 3.1). Nothing is downloaded: `obtain` says where a person gets a
copy, `source` how `prepare` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Task = Literal["classification", "segmentation", "depth"]


@dataclass(frozen=True)
class CatalogEntry:
    """One data set.

    counts: expected images by split; an empty mapping means that any number will do. source: the `datasets.N.source`
    that reads it, PLACE being the local copy; None where this version has no reader. needs: paths that the official
    layout has below its root, where `source` does not know them itself.
    """

    name: str
    title: str
    task: Task
    classes: int
    counts: Mapping[str, int]
    metric: str
    protocol: str
    license: str
    obtain: str
    source: str | None = None
    needs: tuple[str, ...] = field(default=())


_RESEARCH = "non-commercial research"
_IMAGENET = "ImageNet terms of access (non-commercial research)"
_LOGREG = "logreg, C on a validation split"
_WEB = "images from the web, each with its own license; lists MIT"
_SGD = "sgd on L2-normalized features"
_FOLDER = "folder:PLACE"


def _cog(level: int, train: int) -> CatalogEntry:
    return CatalogEntry(
        f"imagenet-cog-l{level}", f"ImageNet-CoG level {level}", "classification", 1000,
        {"train": train, "test": 50_000}, "top-1", _SGD, _IMAGENET,
        "images of ImageNet-21K from image-net.org, as images/<synset>/<image>; the published split files are pickles, "
        f"which are not read: write them as text, one <synset>/<image> a line, to L{level}_train.txt and "
        f"L{level}_test.txt",
        f"official:imagenet-cog-l{level}:PLACE",
    )  # fmt: skip


def _shift(name: str, title: str, classes: int, test: int, license_: str, obtain: str) -> CatalogEntry:
    """A test set for a classifier trained on ImageNet-1K; its labels are ImageNet's."""
    some = "" if classes == 1000 else f"; all 1,000 classes can be answered, of which it has {classes}"
    return CatalogEntry(
        name, title, "classification", classes, {"test": test}, "top-1", f"sgd, train_on imagenet-1k{some}", license_,
        obtain, f"official:{name}:PLACE",
    )  # fmt: skip


def _transfer(
    name: str, title: str, classes: int, train: int, test: int, license_: str, obtain: str, protocol: str = _LOGREG
) -> CatalogEntry:
    """A set with an official layout; iNaturalist is tested on its validation images."""
    last = "val" if name.startswith("inat") else "test"
    return CatalogEntry(
        name, title, "classification", classes, {"train": train, last: test}, "top-1", protocol, license_, obtain,
        f"official:{name}:PLACE",
    )  # fmt: skip


CATALOG: tuple[CatalogEntry, ...] = (
    CatalogEntry("imagenet-1k", "ImageNet-1K (ILSVRC 2012)", "classification", 1000,
                 {"train": 1_281_167, "val": 50_000}, "top-1", _SGD, _IMAGENET,
                 "image-net.org, after registration: train/<synset>/, and val/ sorted into such folders too, or flat "
                 "with the unpacked development kit beside it", "official:imagenet-1k:PLACE"),
    *(_cog(level, n) for level, n in enumerate((1_118_804, 1_115_788, 1_095_203, 1_107_128, 1_091_654), start=1)),
    _transfer("aircraft", "FGVC-Aircraft (variants)", 100, 6667, 3333, _RESEARCH,
              "robots.ox.ac.uk/~vgg/data/fgvc-aircraft, release 2013b"),
    _transfer("cars196", "Stanford Cars", 196, 8144, 8041, _RESEARCH,
              "ai.stanford.edu/~jkrause/cars: car_ims with cars_annos.mat, or cars_train and cars_test with devkit and "
              "the labels of the test images"),
    _transfer("dtd", "Describable Textures, split 1", 47, 3760, 1880, _RESEARCH, "robots.ox.ac.uk/~vgg/data/dtd"),
    _transfer("eurosat", "EuroSAT (RGB)", 10, 18_900, 8100, "MIT",
              "github.com/phelber/EuroSAT; no split is published: 810 fixed images of every class are the test images"),
    _transfer("flowers102", "Oxford Flowers-102", 102, 2040, 6149, _RESEARCH,
              "robots.ox.ac.uk/~vgg/data/flowers/102: 102flowers.tgz, imagelabels.mat, setid.mat"),
    _transfer("pets", "Oxford-IIIT Pet", 37, 3680, 3669, "CC BY-SA 4.0",
              "robots.ox.ac.uk/~vgg/data/pets: images.tar.gz, annotations.tar.gz"),
    _transfer("food101", "Food-101", 101, 75_750, 25_250, _RESEARCH,
              "data.vision.ee.ethz.ch/cvl/datasets_extra/food-101"),
    _transfer("sun397", "SUN397, partition 1", 397, 19_850, 19_850, _RESEARCH,
              "vision.princeton.edu/projects/2010/SUN: SUN397.tar.gz, Partitions.zip"),
    _transfer("inat2018", "iNaturalist 2018", 8142, 437_513, 24_426, _RESEARCH,
              "github.com/visipedia/inat_comp: train_val2018, train2018.json, val2018.json", _SGD),
    _transfer("inat2019", "iNaturalist 2019", 1010, 265_213, 3030, _RESEARCH,
              "github.com/visipedia/inat_comp: train_val2019, train2019.json, val2019.json", _SGD),
    _shift("imagenet-v2", "ImageNet-v2, matched frequency", 1000, 10_000, _WEB,
           "github.com/modestyachts/ImageNetV2: folders 0 to 999"),
    _shift("imagenet-r", "ImageNet-R", 200, 30_000, _WEB, "github.com/hendrycks/imagenet-r"),
    _shift("imagenet-a", "ImageNet-A", 200, 7500, _WEB, "github.com/hendrycks/natural-adv-examples"),
    _shift("imagenet-sketch", "ImageNet-Sketch", 1000, 50_889, _WEB, "github.com/HaohanWang/ImageNet-Sketch"),
    CatalogEntry("ade20k", "ADE20K (MIT scene parsing)", "segmentation", 150,
                 {"training": 20_210, "validation": 2000},
                 "mIoU", "linear segmentation", _RESEARCH,
                 "groups.csail.mit.edu/vision/datasets/ADE20K",
                 "ade20k:PLACE",
                 ("images/training", "annotations/training", "images/validation", "annotations/validation")),
    CatalogEntry("nyu-depth-v2", "NYU depth v2", "depth", 0, {"train": 24_231, "test": 654}, "RMSE", "linear depth",
                 _RESEARCH, "cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html; the images and lists of the BTS project",
                 "nyu:PLACE", ("nyu_train.txt", "nyu_test.txt")),
    CatalogEntry("fashion-mnist", "Fashion-MNIST", "classification", 10, {"train": 60_000, "test": 10_000}, "top-1",
                 _LOGREG, "MIT", "github.com/zalandoresearch/fashion-mnist, or Debian's dataset-fashion-mnist",
                 "idx:PLACE"),
    CatalogEntry("mnist", "MNIST", "classification", 10, {"train": 60_000, "test": 10_000}, "top-1", _LOGREG,
                 "CC BY-SA 3.0", "any mirror of the four IDX files", "idx:PLACE"),
    CatalogEntry("digits", "scikit-learn's digits", "classification", 10, {"train": 1198, "test": 599}, "top-1",
                 _LOGREG, "CC BY 4.0", "part of scikit-learn", "sklearn:digits"),
    CatalogEntry("image-folder", "any folder of class folders", "classification", 0, {}, "top-1", _LOGREG, "yours",
                 "<split>/<class>/<image>", _FOLDER),
)  # fmt: skip
