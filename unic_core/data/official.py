"""Data sets as their authors publish them: `official:NAME:PLACE` reads the unpacked files, local or on S3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from unic_core.data.layouts import LAYOUTS, Copy, Listing
from unic_core.data.listing import Source, SourceSplit, content_hash, listing_hash
from unic_core.errors import UnicError
from unic_core.storage import Store, open_store


class Inventory(NamedTuple):
    """What a copy holds.

    `needs`: what the layout needs, and whether it is there. `listing`: None unless all of it is. `sizes`: of the files.
    `store`: at the root of the layout.
    """

    store: Store
    needs: dict[str, bool]
    listing: Listing | None
    sizes: Mapping[str, int]

    def missing(self, split: str) -> list[str]:
        """Images that the listing names and that are not there."""
        images = self.listing.splits[split] if self.listing else []
        return [key for key, _ in images if key not in self.sizes]


def official_source(place: str) -> Source:
    """The images of `NAME:PLACE`.

    Raises:
        UnicError: unknown name; files are missing or can't be understood.
    """
    name, separator, where = place.partition(":")
    if not separator:
        raise UnicError(f"official:{place} lacks a place; write official:NAME:PLACE, as in official:dtd:/data/dtd")
    found = take_inventory(name, where)
    absent = [need for need, there in found.needs.items() if not there]
    if found.listing is None:
        raise UnicError(
            f"{where} is no copy of {name}: {', '.join(absent)} missing; `unic datasets show {name}` says more"
        )
    for split in found.listing.splits:
        missing = found.missing(split)
        if missing:
            raise UnicError(
                f"{where} lacks {len(missing):,} images of {name} ({split}), the first one {missing[0]}; "
                "unpack it again"
            )
    every = [pair for images in found.listing.splits.values() for pair in images]
    classes = tuple(found.listing.classes or sorted({label for _, label in every}))
    number = {label: i for i, label in enumerate(classes)}
    splits = {}
    for split, images in found.listing.splits.items():
        if not images:
            raise UnicError(f"{where} has no images of {name} ({split}); get it again")
        keys = [key for key, _ in images]
        labels = np.array([number[label] for _, label in images], dtype=np.int64)
        splits[split] = SourceSplit(keys, labels, keys, found.store.get)
    used = {key: found.sizes[key] for key, _ in every}
    content = content_hash([listing_hash(found.store, used), *(f"{key}\t{label}" for key, label in every)])
    return Source(splits, classes, content)


def take_inventory(name: str, where: str) -> Inventory:
    """Look at a copy; nothing is downloaded or changed.

    Raises:
        UnicError: unknown name, or files that can't be understood.
    """
    if name not in LAYOUTS:
        raise UnicError(f"no official layout is called {name!r}; choose from {', '.join(LAYOUTS)}")
    layout, store = LAYOUTS[name], open_store(where)
    sizes = store.list()
    best: tuple[Copy, dict[str, bool]] | None = None
    for root in layout.roots:
        below = {key.removeprefix(root): size for key, size in sizes.items() if key.startswith(root)}
        copy = Copy(store.child(root.rstrip("/")) if root else store, below)
        needs = {need: copy.find(need) is not None for need in layout.needs}
        if best is None or sum(needs.values()) > sum(best[1].values()):
            best = (copy, needs)
    assert best is not None  # noqa: S101 (every layout has a root)
    copy, needs = best
    if not all(needs.values()):
        return Inventory(copy.store, needs, None, copy.sizes)
    try:
        return Inventory(copy.store, needs, layout.read(copy), copy.sizes)
    except (KeyError, IndexError, ValueError, TypeError, NotImplementedError) as error:
        raise UnicError(f"the lists of {name} at {where} can't be understood ({error}); get them again") from None
