"""Existing WebDataset shards as a source: plain tars in which the files of one sample share a name."""

from __future__ import annotations

import fnmatch
import io
import json
import re
import tarfile
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple

from unic_core.data.listing import (
    Source,
    SourceSplit,
    is_image,
    listing_hash,
    number_labels,
)
from unic_core.data.parallel import in_order
from unic_core.errors import UnicError
from unic_core.storage import LocalStore, Store, join, open_store

_SPLIT = re.compile(r"(?:^|[-_./])(train|training|val|valid|validation|test|trainval)(?=[-_./\d]|$)")
_PIECE_BYTES = 2**20  # of a remote tar, asked for at once
_PIECES = 4  # kept
_SCAN_THREADS = 8


class _Member(NamedTuple):
    tar: str
    offset: int
    length: int
    key: str
    label: str | None


class _Tars:
    """Random access to tars. Of a remote tar larger pieces are fetched, which hold the neighbors of an image too."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._piece = lru_cache(_PIECES)(self._fetch)
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[_Tars], tuple[Store]]:
        return _Tars, (self._store,)

    def open(self, key: str, size: int) -> BinaryIO:
        """The tar as a file, for reading from its start to its end."""
        if isinstance(self._store, LocalStore):
            return (self._store.root / key).open("rb")
        return io.BufferedReader(_RemoteFile(self._store, key, size), _PIECE_BYTES)

    def read(self, member: _Member) -> bytes:
        if isinstance(self._store, LocalStore):
            return self._store.get(member.tar, member.offset, member.length)
        first, last = member.offset // _PIECE_BYTES, (member.offset + member.length - 1) // _PIECE_BYTES
        with self._lock:  # or several threads would fetch the same piece
            data = b"".join(self._piece(member.tar, number) for number in range(first, last + 1))
        begin = member.offset - first * _PIECE_BYTES
        return data[begin : begin + member.length]

    def _fetch(self, key: str, number: int) -> bytes:
        return self._store.get(key, number * _PIECE_BYTES, _PIECE_BYTES)


class _RemoteFile(io.RawIOBase):
    """An object on a store as a file that can be read."""

    def __init__(self, store: Store, key: str, size: int) -> None:
        self._store, self._key, self._size, self._position = store, key, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._store.get(self._key, self._position, min(len(buffer), max(0, self._size - self._position)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def webdataset_source(place: str) -> Source:
    """`place`: one tar, a folder or S3 prefix of tars, or a pattern (`*`, `?`, `{000..127}`, `{a,b}`) below one.

    A sample is the files that share a name up to its first dot: one image and, where there is a label, `.cls`
    (number or name) or `.json` with a `label`. The split is read from the tar's name (`val-0001.tar`), else `train`.
    """
    base, patterns = _split_pattern(place)
    store = open_store(base)
    sizes = {
        key: size
        for key, size in store.list().items()
        if any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)
    }
    if not sizes:
        raise UnicError(f"no shards at {place}; point `wds:` at uncompressed .tar files or at their folder")
    tars = _Tars(store)
    by_split: dict[str, list[_Member]] = {}
    scanned = in_order(lambda key: _scan(tars, key, sizes[key], join(base, key)), sizes, _SCAN_THREADS)
    for key, found_members in zip(sizes, scanned, strict=True):
        found = _SPLIT.search(key)
        by_split.setdefault(found.group(1) if found else "train", []).extend(found_members)
    everything = [member for members in by_split.values() for member in members]
    if not everything:
        raise UnicError(f"no images in the shards at {place}; samples need a .jpg, .png or .webp file")
    numbers, classes = number_labels([member.label for member in everything], place)
    splits, start = {}, 0
    for split, members in by_split.items():
        labels = numbers[start : start + len(members)]
        start += len(members)
        keys = [f"{member.tar}:{member.key}" for member in members]
        splits[split] = SourceSplit(keys, labels, members, tars.read, sequential=True)
    return Source(splits, classes, listing_hash(store, sizes))


def _scan(tars: _Tars, key: str, size: int, where: str) -> list[_Member]:
    try:
        with tars.open(key, size) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            return list(_members(tar, key, where))
    except (tarfile.TarError, EOFError) as error:
        raise UnicError(f"{where} is not a readable tar ({error}); repair it or take it out of the source") from None


def _members(tar: tarfile.TarFile, key: str, where: str) -> Iterator[_Member]:
    """The samples of one tar, from its headers and small label files."""
    name, image, label = "", None, None
    for info in tar:
        if not info.isfile():
            continue
        folder, _, file = info.name.rpartition("/")
        stem, _, suffix = file.partition(".")
        sample = f"{folder}/{stem}" if folder else stem
        if sample != name:
            if image is not None:
                yield _Member(key, image.offset_data, image.size, name, label)
            name, image, label = sample, None, None
        if image is None and is_image(f"x.{suffix}"):
            image = info
        elif suffix in ("cls", "json"):
            data = tar.extractfile(info)
            if data is not None and label is None:
                label = _label(data.read(), suffix, f"{where}:{info.name}")
    if image is not None:
        yield _Member(key, image.offset_data, image.size, name, label)


def _label(data: bytes, suffix: str, where: str) -> str | None:
    try:
        if suffix == "cls":
            return data.decode().strip() or None
        record = json.loads(data)
    except ValueError:
        raise UnicError(f"{where} is not readable; a .cls file holds one label, a .json file an object") from None
    value = record.get("label") if isinstance(record, dict) else None
    return str(value) if isinstance(value, int | str) else None


def _split_pattern(place: str) -> tuple[str, list[str]]:
    """(folder without wildcards, patterns of keys below it)."""
    if not re.search(r"[*?{\[]", place) and not place.endswith(".tar"):
        return place, ["*.tar"]
    head = re.split(r"[*?{\[]", place, maxsplit=1)[0]
    base = head.rpartition("/")[0]
    pattern = place[len(base) :].lstrip("/")
    return base or ("/" if place.startswith("/") else "."), list(_expand(pattern))


def _expand(pattern: str) -> Iterator[str]:
    """Braces written out: `{0..3}` keeps leading zeros, `{a,b}` is a choice."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", match.group(1))
    if bounds:
        first, last = bounds.groups()
        choices = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    else:
        choices = match.group(1).split(",")
    for choice in choices:
        yield from _expand(pattern[: match.start()] + choice + pattern[match.end() :])
