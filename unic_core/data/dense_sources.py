"""Sources with a mask or depths for every image, in the layouts in which the data sets are distributed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from unic_core.data.listing import UNLABELED, Source, SourceSplit, Target, content_hash, is_image, listing_hash
from unic_core.data.targets import IGNORE, Values, decode_target, encode_target
from unic_core.errors import UnicError
from unic_core.storage import Store, open_store

ADE_CLASSES = 150
_CLASSES = "classes.txt"

Row = tuple[str, str]  # keys of an image and of its target


@dataclass(frozen=True)
class _Files:
    """Reads pairs of files of one store; `convert` brings a target into the form in which it is stored."""

    store: Store
    convert: Callable[[Values, str], Values]

    def image(self, row: Row) -> bytes:
        return self.store.get(row[0])

    def target(self, row: Row) -> bytes:
        return encode_target(self.convert(decode_target(self.store.get(row[1])), row[1]))


def dense_source(place: str) -> Source:
    """`images/<split>/<name>.jpg` with `masks/<split>/<name>.png` or `depths/<split>/<name>.png`.

    Masks hold class numbers from 0, 255 where a pixel is not scored; `classes.txt` names the classes, one a line.
    Depths are 16-bit millimeters, 0 where unknown. Files without a folder for the split make the split `train`.
    """
    store = open_store(place)
    sizes = store.list()
    kinds = [kind for kind in ("masks", "depths") if any(key.startswith(f"{kind}/") for key in sizes)]
    if len(kinds) != 1:
        found = "both masks/ and depths/" if kinds else "neither masks/ nor depths/"
        raise UnicError(f"{place} has {found}; `dense:` takes images/ and one of the two, with the same file names")
    names = _class_names(store, place) if kinds == ["masks"] else ()
    target: Target = "mask" if kinds == ["masks"] else "depth"
    convert = _Masks(len(names)) if target == "mask" else _depths
    return _paired(store, place, sizes, ("images", kinds[0]), names, target, convert)


def ade20k_source(place: str) -> Source:
    """ADE20K as of the scene parsing challenge (`ADEChallengeData2016`): `images/` and `annotations/` with `training`
    and `validation`. Its 0 ("other") is not scored, its 1 to 150 become classes 0 to 149; `objectInfo150.txt` names
    them where it is there.
    """
    store = open_store(place)
    sizes = store.list()
    names = tuple(str(i) for i in range(ADE_CLASSES))
    if "objectInfo150.txt" in sizes:
        lines = store.get("objectInfo150.txt").decode().splitlines()[1:]
        rows = [line.rstrip().split("\t") for line in lines if line.strip()]
        names = tuple(row[-1].strip() for row in rows)
        if len(names) != ADE_CLASSES:
            raise UnicError(f"{place}/objectInfo150.txt names {len(names)} classes instead of 150; get it again")
    return _paired(store, place, sizes, ("images", "annotations"), names, "mask", _ade_mask)


def nyu_source(place: str) -> Source:
    """NYU depth v2 as the depth protocols use it: `nyu_train.txt` and `nyu_test.txt` list `image depth focal`, with
    paths from the folder of the lists; depths are 16-bit PNGs of millimeters.
    """
    store = open_store(place)
    sizes = store.list()
    splits: dict[str, SourceSplit] = {}
    parts: list[str | bytes] = []
    for split in ("train", "test"):
        name = f"nyu_{split}.txt"
        if name not in sizes:
            continue
        data = store.get(name)
        rows = [_listed(line, f"{place}/{name}") for line in data.decode().splitlines() if line.strip()]
        missing = next((key for row in rows for key in row if key not in sizes), None)
        if missing is not None:
            raise UnicError(f"{place}/{name} names {missing}, which does not exist; get the data set again")
        splits[split] = _split(rows, store, _depths)
        parts += [split, data, *(f"{sizes[image]} {sizes[depth]}" for image, depth in rows)]
    if not splits:
        raise UnicError(f"no nyu_train.txt or nyu_test.txt at {place}; point `nyu:` at the folder that holds them")
    return Source(splits, (), content_hash(parts), "depth")


def _listed(line: str, where: str) -> Row:
    fields = line.split()
    if len(fields) not in (2, 3):
        raise UnicError(f"{where} has the line {line!r}; write `image depth focal`")
    return fields[0].lstrip("/"), fields[1].lstrip("/")


def _paired(
    store: Store,
    place: str,
    sizes: Mapping[str, int],
    folders: tuple[str, str],
    classes: tuple[str, ...],
    target: Target,
    convert: Callable[[Values, str], Values],
) -> Source:
    """Two trees with the same names: images in the first folder, targets (PNG) in the second."""
    images, targets = folders
    used = {k: n for k, n in sizes.items() if k.partition("/")[0] in folders and is_image(k)}
    by_split: dict[str, list[Row]] = {}
    for key in (key for key in used if key.startswith(f"{images}/")):
        inside = PurePosixPath(key).relative_to(images)
        split = inside.parts[0] if len(inside.parts) > 1 else "train"
        other = f"{targets}/{inside.with_suffix('.png')}"
        if other not in used:
            raise UnicError(f"{place} has {key}, but no {other}; add it or remove the image")
        by_split.setdefault(split, []).append((key, other))
    if not by_split:
        raise UnicError(f"no images in {place}/{images}; the folder is missing or empty")
    splits = {split: _split(rows, store, convert) for split, rows in by_split.items()}
    return Source(splits, classes, content_hash([listing_hash(store, used), *classes]), target)


def _split(rows: list[Row], store: Store, convert: Callable[[Values, str], Values]) -> SourceSplit:
    files = _Files(store, convert)
    labels = np.full(len(rows), UNLABELED, dtype=np.int64)
    return SourceSplit([image for image, _ in rows], labels, rows, files.image, read_target=files.target)


def _class_names(store: Store, place: str) -> tuple[str, ...]:
    try:
        lines = store.get(_CLASSES).decode().splitlines()
    except FileNotFoundError:
        raise UnicError(f"{place} has masks/, but no {_CLASSES}; write the names of the classes, one a line") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if not 1 <= len(names) <= IGNORE:
        raise UnicError(f"{place}/{_CLASSES} names {len(names)} classes; masks can hold 1 to {IGNORE}")
    return names


@dataclass(frozen=True)
class _Masks:
    """Checks a mask of class numbers 0 to `classes` - 1 and 255."""

    classes: int

    def __call__(self, values: Values, key: str) -> Values:
        wrong = np.unique(values[(values >= self.classes) & (values != IGNORE)])
        if values.dtype != np.uint8 or len(wrong):
            what = f"the value {int(wrong[0])}" if len(wrong) else "16 bits"
            raise UnicError(f"{key} has {what}; a mask holds 8-bit class numbers below {self.classes}, or {IGNORE}")
        return values


def _ade_mask(values: Values, key: str) -> Values:
    # 0 wraps to 255
    return _Masks(ADE_CLASSES)(values - np.uint8(1), key) if values.dtype == np.uint8 else _Masks(0)(values, key)


def _depths(values: Values, key: str) -> Values:
    if values.dtype != np.uint16:
        raise UnicError(f"{key} has 8 bits per pixel; depths are 16-bit PNGs of millimeters")
    return values
