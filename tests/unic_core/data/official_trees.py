"""Small copies of published data sets, file by file in their official layouts."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from unic_core.data.layouts import EUROSAT_CLASSES, imagenet_synsets

Expected = dict[str, dict[str, str]]  # split -> key -> class
Builder = Callable[[Path], Expected]


def picture() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((12, 12, 3), 99, np.uint8)).save(out, format="JPEG")
    return out.getvalue()


PICTURE = picture()


def put(place: Path, *names: str) -> None:
    for name in names:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PICTURE)


def write(place: Path, name: str, *lines: str) -> None:
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).write_text("\n".join(lines) + "\n")


def mat(place: Path, name: str, **variables: Any) -> None:
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    savemat(place / name, variables)


def records(rows: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """A MATLAB struct array."""
    array = np.empty(len(rows), dtype=[(name, object) for name in rows[0]])
    for i, row in enumerate(rows):
        array[i] = tuple(row.values())
    return array


def aircraft(place: Path) -> Expected:
    root = place / "fgvc-aircraft-2013b" / "data"
    put(root, "images/0034309.jpg", "images/1025794.jpg", "images/0056978.jpg", "images/0000001.jpg")
    write(root, "images_variant_train.txt", "1025794 707-320")
    write(root, "images_variant_trainval.txt", "1025794 707-320", "0034309 Boeing 717")
    write(root, "images_variant_test.txt", "0056978 Boeing 717")
    return {
        "train": {"images/1025794.jpg": "707-320", "images/0034309.jpg": "Boeing 717"},
        "test": {"images/0056978.jpg": "Boeing 717"},
    }


def cars(place: Path) -> Expected:
    put(place, "car_ims/000001.jpg", "car_ims/000002.jpg", "car_ims/000003.jpg")
    rows = [("car_ims/000001.jpg", 1, 0), ("car_ims/000002.jpg", 196, 1), ("car_ims/000003.jpg", 196, 0)]
    fields = [{"relative_im_path": key, "bbox_x1": 1, "class": label, "test": test} for key, label, test in rows]
    mat(place, "cars_annos.mat", annotations=records(fields), class_names=["AM General Hummer"])
    return {"train": {rows[0][0]: "001", rows[2][0]: "196"}, "test": {rows[1][0]: "196"}}


def cars_devkit(place: Path) -> Expected:
    put(place, "cars_train/00001.jpg", "cars_train/00002.jpg", "cars_test/00001.jpg")
    train = [{"bbox_x1": 39, "class": 14, "fname": "00001.jpg"}, {"bbox_x1": 3, "class": 3, "fname": "00002.jpg"}]
    mat(place, "devkit/cars_train_annos.mat", annotations=records(train))
    mat(place, "cars_test_annos_withlabels.mat", annotations=records([{"class": 14, "fname": "00001.jpg"}]))
    return {
        "train": {"cars_train/00001.jpg": "014", "cars_train/00002.jpg": "003"},
        "test": {"cars_test/00001.jpg": "014"},
    }


def dtd(place: Path) -> Expected:
    names = [f"{label}/{label}_{i:04d}.jpg" for label in ("banded", "zigzagged") for i in (2, 4, 5)]
    put(place / "dtd", *(f"images/{name}" for name in names))
    for part, i in (("train1", 0), ("val1", 1), ("test1", 2)):
        write(place / "dtd", f"labels/{part}.txt", names[i], names[i + 3])
    write(place / "dtd", "labels/train2.txt", *names)
    of = {f"images/{name}": name.partition("/")[0] for name in names}
    test = {f"images/{names[i]}" for i in (2, 5)}
    return {"train": {k: v for k, v in of.items() if k not in test}, "test": {k: of[k] for k in test}}


def flowers(place: Path) -> Expected:
    put(place, *(f"jpg/image_{i:05d}.jpg" for i in range(1, 6)))
    mat(place, "imagelabels.mat", labels=np.array([[77, 77, 1, 102, 1]], np.uint8))
    mat(place, "setid.mat", trnid=np.array([[1, 3]]), valid=np.array([[4]]), tstid=np.array([[2, 5]]))
    labels = {"00001": "077", "00002": "077", "00003": "001", "00004": "102", "00005": "001"}
    of = {f"jpg/image_{number}.jpg": label for number, label in labels.items()}
    return {
        "train": {key: of[key] for key in of if key[10:15] in {"00001", "00003", "00004"}},
        "test": {key: of[key] for key in of if key[10:15] in {"00002", "00005"}},
    }


def pets(place: Path) -> Expected:
    names = ["Abyssinian_100", "american_bulldog_10", "american_bulldog_2"]
    put(place, *(f"images/{name}.jpg" for name in names))
    write(place, "annotations/list.txt", "#Image CLASS-ID SPECIES BREED ID")
    write(place, "annotations/trainval.txt", "Abyssinian_100 1 1 1", "american_bulldog_10 2 2 1")
    write(place, "annotations/test.txt", "american_bulldog_2 2 2 1")
    return {
        "train": {"images/Abyssinian_100.jpg": "Abyssinian", "images/american_bulldog_10.jpg": "american_bulldog"},
        "test": {"images/american_bulldog_2.jpg": "american_bulldog"},
    }


def food(place: Path) -> Expected:
    root = place / "food-101"
    put(root, "images/apple_pie/1005649.jpg", "images/waffles/12.jpg", "images/waffles/13.jpg")
    write(root, "meta/classes.txt", "apple_pie", "waffles")
    write(root, "meta/train.txt", "apple_pie/1005649", "waffles/12")
    write(root, "meta/test.txt", "waffles/13")
    return {
        "train": {"images/apple_pie/1005649.jpg": "apple_pie", "images/waffles/12.jpg": "waffles"},
        "test": {"images/waffles/13.jpg": "waffles"},
    }


def sun(place: Path) -> Expected:
    train = ["/a/abbey/sun_aa.jpg", "/a/apartment_building/outdoor/sun_bb.jpg"]
    put(place, *(f"SUN397{name}" for name in (*train, "/a/abbey/sun_cc.jpg")))
    write(place, "SUN397/ClassName.txt", "/a/abbey", "/a/apartment_building/outdoor")
    write(place, "Partitions/Training_01.txt", *train)
    write(place, "Partitions/Testing_01.txt", "/a/abbey/sun_cc.jpg")
    return {
        "train": {f"SUN397{train[0]}": "a/abbey", f"SUN397{train[1]}": "a/apartment_building/outdoor"},
        "test": {"SUN397/a/abbey/sun_cc.jpg": "a/abbey"},
    }


def inaturalist(year: int) -> Builder:
    def build(place: Path) -> Expected:
        expected: Expected = {}
        for split, images in (("train", {"a": 10, "b": 9}), ("val", {"c": 10})):
            names = {f"train_val{year}/Plantae/{label}/{name}.jpg": label for name, label in images.items()}
            put(place, *names)
            numbers = {name: 100 + i for i, name in enumerate(names)}
            data = {
                "images": [{"id": i, "file_name": name, "width": 800} for name, i in numbers.items()],
                "annotations": [{"id": i, "image_id": i, "category_id": names[name]} for name, i in numbers.items()],
                "categories": [{"id": 9, "name": "Quercus"}, {"id": 10, "name": "Fagus"}],
            }
            write(place, f"{split}{year}.json", json.dumps(data))
            expected[split] = {name: f"{label:05d}" for name, label in names.items()}
        return expected

    return build


def imagenet(place: Path) -> Expected:
    train = {f"train/{s}/{s}_{i}.JPEG": s for s in ("n01440764", "n15075141") for i in (3, 10026)}
    val = {"val/n15075141/ILSVRC2012_val_00000001.JPEG": "n15075141"}
    put(place, *train, *val)
    return {"train": train, "val": val}


def imagenet_flat(place: Path) -> Expected:
    expected = {"train": imagenet(place)["train"]}
    (place / "val/n15075141/ILSVRC2012_val_00000001.JPEG").unlink()
    expected["val"] = {f"val/ILSVRC2012_val_0000000{i}.JPEG": s for i, s in ((1, "n15075141"), (2, "n01440764"))}
    put(place, *expected["val"])
    kit = "ILSVRC2012_devkit_t12/data"
    write(place, f"{kit}/ILSVRC2012_validation_ground_truth.txt", "490", "1")
    rows = [{"ILSVRC2012_ID": 1, "WNID": "n01440764"}, {"ILSVRC2012_ID": 490, "WNID": "n15075141"}]
    mat(place, f"{kit}/meta.mat", synsets=records(rows))
    return expected


def cog(place: Path) -> Expected:
    train = ["n00007846/n00007846_1.JPEG", "n00141669/n00141669_2.JPEG"]
    put(place, *(f"images/{name}" for name in (*train, "n00141669/n00141669_9.JPEG")))
    write(place, "L3_train.txt", *train)
    write(place, "L3_test.txt", "n00141669/n00141669_9.JPEG")
    return {
        "train": {f"images/{name}": name[:9] for name in train},
        "test": {"images/n00141669/n00141669_9.JPEG": "n00141669"},
    }


def imagenet_v2(place: Path) -> Expected:
    root = place / "imagenetv2-matched-frequency-format-val"
    put(root, "0/aa.jpeg", "10/bb.jpeg", "999/cc.jpeg")
    synsets = imagenet_synsets()
    return {"test": {"0/aa.jpeg": synsets[0], "10/bb.jpeg": synsets[10], "999/cc.jpeg": synsets[999]}}


def imagenet_r(place: Path) -> Expected:
    put(place / "imagenet-r", "n01443537/art_0.jpg", "n02106662/tattoo_1.jpg")
    write(place / "imagenet-r", "README.txt", "n01443537 goldfish")
    return {"test": {"n01443537/art_0.jpg": "n01443537", "n02106662/tattoo_1.jpg": "n02106662"}}


def eurosat(place: Path) -> dict[str, list[str]]:
    """All images by class; which of them are test images is ours to choose."""
    found = {}
    for n, name in enumerate(EUROSAT_CLASSES):
        found[name] = [f"{name}/{name}_{i}.jpg" for i in range(1, 812 + n)]
        put(place / "2750", *found[name])
    return found


TREES: dict[str, tuple[str, Builder]] = {
    "aircraft": ("aircraft", aircraft),
    "cars196": ("cars196", cars),
    "cars196-devkit": ("cars196", cars_devkit),
    "dtd": ("dtd", dtd),
    "flowers102": ("flowers102", flowers),
    "pets": ("pets", pets),
    "food101": ("food101", food),
    "sun397": ("sun397", sun),
    "inat2018": ("inat2018", inaturalist(2018)),
    "inat2019": ("inat2019", inaturalist(2019)),
    "imagenet-1k": ("imagenet-1k", imagenet),
    "imagenet-1k-flat": ("imagenet-1k", imagenet_flat),
    "imagenet-cog-l3": ("imagenet-cog-l3", cog),
    "imagenet-v2": ("imagenet-v2", imagenet_v2),
    "imagenet-r": ("imagenet-r", imagenet_r),
}
