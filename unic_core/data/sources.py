"""Where images come from: `folder:`, `list:`, `wds:`, `idx:`, `official:`, `torchvision:`, `sklearn:`, with a place.

`dense:`, `ade20k:` and `nyu:` are images with a mask or depths each.
"""

from __future__ import annotations

from collections.abc import Callable

from unic_core.data.arrays import digits_source, idx_source, torchvision_source
from unic_core.data.dense_sources import ade20k_source, dense_source, nyu_source
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
        "dense": dense_source,
        "ade20k": ade20k_source,
        "nyu": nyu_source,
    }
    kind, _, place = source.partition(":")
    if kind not in kinds:
        raise UnicError(f"unknown source {source!r}; start it with one of {', '.join(sorted(kinds))}")
    return kinds[kind](place)
