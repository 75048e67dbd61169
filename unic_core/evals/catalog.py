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
    layout has below its root.
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
        "images of ImageNet-21K from image-net.org; the official split files are pickles, which are not read: write "
        "each split as text, one `path,label` a line, to train.txt and test.txt",
        "list:PLACE/train.txt and list:PLACE/test.txt", ("train.txt", "test.txt"),
    )  # fmt: skip


def _folder(name: str, title: str, classes: int, test: int, license_: str, obtain: str) -> CatalogEntry:
    """A test set for a classifier trained on ImageNet-1K."""
    return CatalogEntry(
        name, title, "classification", classes, {"train": test}, "top-1", "sgd, train_on imagenet-1k", license_,
        f"{obtain}; a folder of class folders, whose split is called train",
        _FOLDER,
    )  # fmt: skip


CATALOG: tuple[CatalogEntry, ...] = (
    CatalogEntry("imagenet-1k", "ImageNet-1K (ILSVRC 2012)", "classification", 1000,
                 {"train": 1_281_167, "val": 50_000}, "top-1", _SGD, _IMAGENET,
                 "image-net.org, after registration; val sorted into class folders", _FOLDER, ("train", "val")),
    *(_cog(level, n) for level, n in enumerate((1_118_804, 1_115_788, 1_095_203, 1_107_128, 1_091_654), start=1)),
    CatalogEntry("aircraft", "FGVC-Aircraft (variants)", "classification", 100, {"trainval": 6667, "test": 3333},
                 "top-1", _LOGREG, _RESEARCH, "robots.ox.ac.uk/~vgg/data/fgvc-aircraft, release 2013b",
                 "torchvision:FGVCAircraft:PLACE", ("fgvc-aircraft-2013b/data/images",)),
    CatalogEntry("cars196", "Stanford Cars", "classification", 196, {"train": 8144, "test": 8041}, "top-1", _LOGREG,
                 _RESEARCH, "ai.stanford.edu/~jkrause/cars; torchvision's layout",
                 "torchvision:StanfordCars:PLACE", ("stanford_cars/devkit", "stanford_cars/cars_train")),
    CatalogEntry("dtd", "Describable Textures, split 1", "classification", 47,
                 {"train": 1880, "val": 1880, "test": 1880}, "top-1", _LOGREG, _RESEARCH,
                 "robots.ox.ac.uk/~vgg/data/dtd", "torchvision:DTD:PLACE", ("dtd/dtd/images", "dtd/dtd/labels")),
    CatalogEntry("eurosat", "EuroSAT (RGB)", "classification", 10, {"train": 18_900, "test": 8100}, "top-1", _LOGREG,
                 "MIT", "github.com/phelber/EuroSAT; 30 % of every class are a fixed test split",
                 "torchvision:EuroSAT:PLACE", ("eurosat/2750",)),
    CatalogEntry("flowers102", "Oxford Flowers-102", "classification", 102, {"train": 1020, "val": 1020, "test": 6149},
                 "top-1", _LOGREG, _RESEARCH, "robots.ox.ac.uk/~vgg/data/flowers/102",
                 "torchvision:Flowers102:PLACE", ("flowers-102/jpg", "flowers-102/setid.mat")),
    CatalogEntry("pets", "Oxford-IIIT Pet", "classification", 37, {"trainval": 3680, "test": 3669}, "top-1", _LOGREG,
                 "CC BY-SA 4.0", "robots.ox.ac.uk/~vgg/data/pets",
                 "torchvision:OxfordIIITPet:PLACE", ("oxford-iiit-pet/images", "oxford-iiit-pet/annotations")),
    CatalogEntry("food101", "Food-101", "classification", 101, {"train": 75_750, "test": 25_250}, "top-1", _LOGREG,
                 _RESEARCH, "data.vision.ee.ethz.ch/cvl/datasets_extra/food-101",
                 "torchvision:Food101:PLACE", ("food-101/images", "food-101/meta")),
    CatalogEntry("sun397", "SUN397, partition 1", "classification", 397, {"train": 19_850, "test": 19_850}, "top-1",
                 _LOGREG, _RESEARCH, "vision.princeton.edu/projects/2010/SUN; write Training_01 and Testing_01 as "
                 "`path,label` lists", "list:PLACE/train.txt and list:PLACE/test.txt", ("train.txt", "test.txt")),
    CatalogEntry("inat2018", "iNaturalist 2018", "classification", 8142, {"train": 437_513, "val": 24_426}, "top-1",
                 _SGD, _RESEARCH, "github.com/visipedia/inat_comp; write the JSON splits as `path,label` lists",
                 "list:PLACE/train.txt and list:PLACE/val.txt", ("train.txt", "val.txt")),
    CatalogEntry("inat2019", "iNaturalist 2019", "classification", 1010, {"train": 265_213, "val": 3030}, "top-1",
                 _SGD, _RESEARCH, "github.com/visipedia/inat_comp; write the JSON splits as `path,label` lists",
                 "list:PLACE/train.txt and list:PLACE/val.txt", ("train.txt", "val.txt")),
    _folder("imagenet-v2", "ImageNet-v2, matched frequency", 1000, 10_000, _WEB, "github.com/modestyachts/ImageNetV2"),
    _folder("imagenet-r", "ImageNet-R", 200, 30_000, _WEB, "github.com/hendrycks/imagenet-r"),
    _folder("imagenet-a", "ImageNet-A", 200, 7500, _WEB, "github.com/hendrycks/natural-adv-examples"),
    _folder("imagenet-sketch", "ImageNet-Sketch", 1000, 50_889, _WEB, "github.com/HaohanWang/ImageNet-Sketch"),
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
