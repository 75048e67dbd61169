"""Existing WebDataset shards as a source: plain tars in which the files of one sample share a name."""

from __future__ import annotations

import fnmatch
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from unic_core.data.cache import FileCache
from unic_core.data.listing import (
    Source,
    SourceSplit,
    is_image,
    listing_hash,
    number_labels,
)
from unic_core.errors import UnicError
from unic_core.storage import LocalStore, Store, join, open_store

_SPLIT = re.compile(r"(?:^|[-_./])(train|training|val|valid|validation|test|trainval)(?=[-_./\d]|$)")
_SCRATCH_BYTES = 8 * 2**30


class _Member(NamedTuple):
    tar: str
    offset: int
    length: int
    key: str
    label: str | None


@dataclass(frozen=True)
class _Tars:
    """Random access to tars: local ones in place, remote ones through a small cache of whole files."""

    store: Store
    cache: FileCache

    def path(self, key: str) -> Path:
        if isinstance(self.store, LocalStore):
            return self.store.root / key
        return self.cache.fetch(self.store, key)

    def read(self, members: list[_Member], index: int) -> bytes:
        member = members[index]
        with self.path(member.tar).open("rb") as file:
            file.seek(member.offset)
            return file.read(member.length)


def webdataset_source(place: str, scratch: Path) -> Source:
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
    tars = _Tars(store, FileCache(scratch, _SCRATCH_BYTES))
    by_split: dict[str, list[_Member]] = {}
    for key in sizes:
        found = _SPLIT.search(key)
        by_split.setdefault(found.group(1) if found else "train", []).extend(_scan(tars, key, join(base, key)))
    everything = [member for members in by_split.values() for member in members]
    if not everything:
        raise UnicError(f"no images in the shards at {place}; samples need a .jpg, .png or .webp file")
    numbers, classes = number_labels([member.label for member in everything], place)
    splits, start = {}, 0
    for split, members in by_split.items():
        labels = numbers[start : start + len(members)]
        start += len(members)
        keys = [f"{member.tar}:{member.key}" for member in members]
        splits[split] = SourceSplit(keys, labels, partial(tars.read, members), sequential=True)
    return Source(splits, classes, listing_hash(store, sizes))


def _scan(tars: _Tars, key: str, where: str) -> Iterator[_Member]:
    """The samples of one tar, from its headers and small label files."""
    name, image, label = "", None, None
    try:
        with tarfile.open(tars.path(key), "r:") as tar:
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
    except (tarfile.TarError, EOFError) as error:
        raise UnicError(f"{where} is not a readable tar ({error}); repair it or take it out of the source") from None


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
