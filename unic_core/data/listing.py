"""What a source of images is: a listing (keys, labels) and one function that loads an image."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np

from unic_core.data.pixels import Pixels
from unic_core.data.subset import Indices
from unic_core.errors import UnicError
from unic_core.storage import LocalStore, Store

Target = Literal["none", "mask", "depth"]  # of every image, besides its label
UNLABELED = -1
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
SPLIT_NAMES = frozenset(("train", "training", "val", "valid", "validation", "test", "trainval", "unlabeled"))

_CHEAP_BYTES = 64 * 2**20  # local files that total less are fingerprinted by content, not only by name and size


@dataclass(frozen=True)
class SourceSplit:
    """The images of one split.

    keys: names that a user finds the images by. labels: int64 [n], -1 without a label.
    rows: what `read` needs to load each image: a path, a place in a tar, or pixels; small and fit to be pickled.
    read: the encoded file, or the pixels, of one row; can be pickled, safe to call from several threads.
    sequential: images lie one after the other in large files and are best read in order.
    read_target: the PNG of a row's mask or depth (`unic_core.data.dense`); it can be pickled, too.
    """

    keys: Sequence[str]
    labels: Indices
    rows: Sequence[Any] | Pixels
    read: Callable[[Any], bytes | Pixels]
    sequential: bool = False
    read_target: Callable[[Any], bytes] | None = None

    def load(self, index: int) -> bytes | Pixels:
        """Image `index`."""
        return self.read(self.rows[index])

    def part(self, indices: Sequence[int]) -> SourceSplit:
        """These images alone: what another process is given, which never holds the whole listing."""
        keys, rows = [self.keys[i] for i in indices], [self.rows[i] for i in indices]
        return replace(self, keys=keys, labels=self.labels[list(indices)], rows=rows)


def identity(row: Pixels) -> Pixels:
    """`read` of rows that are the pixels."""
    return row


@dataclass(frozen=True)
class Source:
    """Splits by name, class names by label, a sha256 over everything that defines the content, what targets are."""

    splits: dict[str, SourceSplit]
    classes: tuple[str, ...]
    content: str
    target: Target = "none"


def content_hash(parts: Iterable[str | bytes]) -> str:
    """sha256 over length-prefixed parts."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def number_labels(names: Sequence[str | None], where: str) -> tuple[Indices, tuple[str, ...]]:
    """Labels and class names: whole numbers are taken as they are, names are numbered in sorted order."""
    known = {name for name in names if name is not None}
    if all(re.fullmatch(r"-?\d+", name) for name in known):
        labels = np.array([UNLABELED if name is None else int(name) for name in names], dtype=np.int64)
        if labels.size and labels.min() < UNLABELED:
            raise UnicError(f"{where} has the label {labels.min()}; labels count from 0, -1 means none")
        return labels, numbered_classes(labels)
    classes = tuple(sorted(known))
    number = {name: i for i, name in enumerate(classes)}
    return np.array([UNLABELED if n is None else number[n] for n in names], dtype=np.int64), classes


def numbered_classes(labels: Indices) -> tuple[str, ...]:
    """Class names "0", "1", ... up to the largest label."""
    return tuple(str(i) for i in range(int(labels.max(initial=UNLABELED)) + 1))


def is_image(key: str) -> bool:
    """Whether a file counts as an image: by its suffix, and not hidden."""
    path = PurePosixPath(key)
    return path.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in path.parts)


def listing_hash(store: Store, sizes: dict[str, int]) -> str:
    """Names and sizes; for small local listings the content as well."""
    parts: list[str | bytes] = [f"{key}\t{size}" for key, size in sizes.items()]
    if isinstance(store, LocalStore) and sum(sizes.values()) <= _CHEAP_BYTES:
        parts += [hashlib.sha256(store.get(key)).digest() for key in sizes]
    return content_hash(parts)
