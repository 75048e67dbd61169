"""Where images come from: `folder:`, `list:`, `wds:`, `idx:`, `official:`, `torchvision:` and `sklearn:`."""

from __future__ import annotations

from collections.abc import Callable

from unic_core.data.arrays import digits_source, idx_source, torchvision_source
from unic_core.data.folders import folder_source, list_source
from unic_core.data.listing import Source
from unic_core.data.official import official_source
from unic_core.data.webdataset import webdataset_source
from unic_core.errors import UnicError


def open_source(source: str) -> Source:
    """The listing of `kind:place`.

    Raises:
        UnicError: there is nothing at the place, or it can't be understood.
    """
    kinds: dict[str, Callable[[str], Source]] = {
        "folder": folder_source,
        "list": list_source,
        "wds": webdataset_source,
        "idx": idx_source,
        "official": official_source,
        "torchvision": torchvision_source,
        "sklearn": digits_source,
    }
    kind, _, place = source.partition(":")
    if kind not in kinds:
        raise UnicError(f"unknown source {source!r}; start it with one of {', '.join(sorted(kinds))}")
    return kinds[kind](place)
