"""Is a local copy of a data set complete? Compares it with the catalog and says what is missing."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from unic_core.data.sources import open_source
from unic_core.errors import UnicError
from unic_core.evals.catalog import CATALOG, CatalogEntry


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    expected: str
    found: str
    ok: bool


def find_entry(name: str) -> CatalogEntry:
    """The entry of the catalog; UnicError for an unknown name."""
    for entry in CATALOG:
        if entry.name == name:
            return entry
    raise UnicError(f"no data set {name!r} in the catalog; choose from {', '.join(e.name for e in CATALOG)}")


def check_copy(entry: CatalogEntry, place: Path) -> list[Finding]:
    """What a copy at `place` has and lacks: paths of the layout, then images by split and classes.

    Nothing is downloaded: sources of torchvision are asked only where all paths of the layout are there.

    Raises:
        UnicError: there is nothing at `place`, or the files can't be understood.
    """
    bundled = entry.source is not None and "PLACE" not in entry.source
    if not bundled and not place.is_dir():
        raise UnicError(f"there is no folder {place}; {entry.title} can be obtained from {entry.obtain}")
    findings = [_path(place, name) for name in entry.needs]
    if entry.source is None or not all(finding.ok for finding in findings):
        return findings
    sources = [part.replace("PLACE", str(place)) for part in entry.source.split(" and ")]
    return [*findings, *_counts(entry, sources)]


def _path(place: Path, name: str) -> Finding:
    found = (place / name).exists()
    return Finding(name, "there", "there" if found else "missing", found)


def _counts(entry: CatalogEntry, sources: list[str]) -> Iterator[Finding]:
    """Images of every split, and classes."""
    found: dict[str, int] = {}
    classes = 0
    for source in sources:
        if source.startswith("torchvision:"):
            _refuse_download(source)
        opened = open_source(source)
        found |= {name: len(split.keys) for name, split in opened.splits.items()}
        classes = max(classes, len(opened.classes))
    for split in dict.fromkeys([*entry.counts, *found]):
        expected, count = entry.counts.get(split), found.get(split, 0)
        wanted = "any" if expected is None else f"{expected:,}"
        yield Finding(f"images of {split}", wanted, f"{count:,}", expected in (None, count) and count > 0)
    if entry.classes:
        yield Finding("classes", f"{entry.classes:,}", f"{classes:,}", classes == entry.classes)


def _refuse_download(source: str) -> None:
    """UnicError where torchvision does not accept the files as they are, instead of fetching them."""
    import torchvision.datasets

    _, name, root = source.split(":", 2)
    factory = getattr(torchvision.datasets, name)
    if "download" not in inspect.signature(factory).parameters:
        return
    try:
        factory(root)
    except (RuntimeError, FileNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UnicError(
            f"torchvision does not find {name} complete in {root} ({reason}); get its files again"
        ) from None
