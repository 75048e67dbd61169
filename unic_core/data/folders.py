"""Sources that are loose image files: a folder of folders, or a list of paths."""

from __future__ import annotations

import posixpath
from functools import partial
from os.path import commonprefix
from pathlib import Path, PurePosixPath

import numpy as np

from unic_core.data.listing import (
    SPLIT_NAMES,
    UNLABELED,
    Source,
    SourceSplit,
    content_hash,
    is_image,
    listing_hash,
    number_labels,
)
from unic_core.errors import UnicError
from unic_core.storage import LocalStore, Store, open_store, read_uri

# ---------------------------------------------------------------- folder


def folder_source(place: str) -> Source:
    """Images in folders, local or on S3.

    `<split>/<class>/**` where every image lies two folders deep or the top folders have names of splits
    (`train`, `val`, `test`, ...); `<class>/**` makes a split `train`; images without folders have no label.
    """
    store = open_store(place)
    sizes = {key: size for key, size in store.list().items() if is_image(key)}
    if not sizes:
        raise UnicError(
            f"no images at {place}: the folder is missing or holds no file with a name like *.jpg or *.png; "
            "point `folder:` at a folder of images"
        )
    by_split: dict[str, list[str]] = {}
    split_folders = _top_folders_are_splits(list(sizes))
    for key in sizes:
        split, _, rest = key.partition("/") if split_folders else ("train", "", key)
        by_split.setdefault(split, []).append(rest)
    class_of = {split: _classes_of(rests, f"{place} ({split})") for split, rests in by_split.items()}
    classes = tuple(sorted({name for names in class_of.values() for name in names if name is not None}))
    number: dict[str | None, int] = {None: UNLABELED, **{name: i for i, name in enumerate(classes)}}
    splits = {}
    for split, rests in by_split.items():
        keys = [f"{split}/{rest}" for rest in rests] if split_folders else rests
        labels = np.array([number[name] for name in class_of[split]], dtype=np.int64)
        splits[split] = SourceSplit(keys, labels, keys, store.get)
    return Source(splits, classes, listing_hash(store, sizes))


def _top_folders_are_splits(keys: list[str]) -> bool:
    depths = {key.count("/") for key in keys}
    return min(depths) >= 2 or (min(depths) == 1 and {key.partition("/")[0] for key in keys} <= SPLIT_NAMES)


def _classes_of(rests: list[str], where: str) -> list[str | None]:
    """The first folder of each path, or None for all where there are no folders."""
    names = [rest.partition("/")[0] if "/" in rest else None for rest in rests]
    if None in names and any(names):
        loose = rests[names.index(None)]
        raise UnicError(
            f"{where} has images beside its class folders, for example {loose}; "
            "move them into class folders, or all images into one folder without classes"
        )
    return names


# ---------------------------------------------------------------- list


def list_source(place: str) -> Source:
    """A text file of lines `path`, `path,label` or `path<tab>label`; paths are relative to the file, or URIs.

    Labels are whole numbers or names. The split is the file's own name where that is one (`val.txt`), else `train`.
    """
    try:
        text = read_uri(place).decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise UnicError(f"no list file at {place}; point `list:` at a text file with one image path a line") from None
    except UnicodeDecodeError:
        raise UnicError(f"{place} is not a text file; write one `path,label` a line in UTF-8") from None
    rows = [_parse_line(line) for line in text.splitlines() if line.strip()]
    if not rows:
        raise UnicError(f"no images in {place}: the list is empty; write one `path,label` a line")
    keys = [path for path, _ in rows]
    files = [_locate(place, path) for path in keys]
    stores = {root: open_store(root) for root in {root for root, _ in files}}
    sizes = _sizes(stores, files)
    missing = next((i for i, file in enumerate(files) if file not in sizes), None)
    if missing is not None:
        raise UnicError(f"{place} names {keys[missing]}, which does not exist; correct the list or add the file")
    labels, classes = number_labels([label for _, label in rows], place)
    stem = PurePosixPath(place).stem.lower()
    split = SourceSplit(keys, labels, files, partial(_load_file, stores))
    content = content_hash([text, *(str(sizes[file]) for file in files)])
    return Source({stem if stem in SPLIT_NAMES else "train": split}, classes, content)


def _parse_line(line: str) -> tuple[str, str | None]:
    if "\t" in line:
        path, _, label = line.partition("\t")
        return path.strip(), label.strip() or None
    path, comma, label = line.rpartition(",")
    if not comma or is_image(label.strip()):  # the comma belongs to the file's name
        return line.strip(), None
    return path.strip(), label.strip() or None


def _locate(list_place: str, path: str) -> tuple[str, str]:
    """(root of a store, key in it) of a path in the list at `list_place`."""
    if "://" not in path and "://" in list_place:
        scheme, _, place = list_place.partition("://")
        path = f"{scheme}://{posixpath.normpath(posixpath.join(posixpath.dirname(place), path))}"
    scheme, separator, place = path.partition("://")
    if separator and scheme != "file":
        bucket, _, key = place.partition("/")
        return f"{scheme}://{bucket}", key
    local = Path(list_place.removeprefix("file://")).expanduser().absolute().parent
    return "/", (local / Path(path.removeprefix("file://")).expanduser()).as_posix().lstrip("/")


def _sizes(stores: dict[str, Store], files: list[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Sizes of the files that exist: local ones are looked up one by one, remote ones by a listing per store."""
    sizes: dict[tuple[str, str], int] = {}
    for root, store in stores.items():
        keys = [key for base, key in files if base == root]
        if isinstance(store, LocalStore):
            paths = {key: store.root / key for key in keys}
            sizes |= {(root, key): path.stat().st_size for key, path in paths.items() if path.is_file()}
        else:
            listed = store.list(commonprefix(keys))  # noqa: RUF071 (a prefix of keys, not a path)
            sizes |= {(root, key): listed[key] for key in keys if key in listed}
    return sizes


def _load_file(stores: dict[str, Store], file: tuple[str, str]) -> bytes:
    root, key = file
    return stores[root].get(key)
