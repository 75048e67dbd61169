"""Is a local copy of a data set complete? Compares it with the catalog and says what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from unic_core.data.official import Inventory, take_inventory
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

    Nothing is downloaded.

    Raises:
        UnicError: there is nothing at `place`, or the files can't be understood.
    """
    bundled = entry.source is not None and "PLACE" not in entry.source
    if not bundled and not place.is_dir():
        raise UnicError(f"there is no folder {place}; {entry.title} can be obtained from {entry.obtain}")
    if entry.source is not None and entry.source.startswith("official:"):
        return _check_official(entry, take_inventory(entry.name, str(place)))
    findings = [_path(name, (place / name).exists()) for name in entry.needs]
    if entry.source is None or not all(finding.ok for finding in findings):
        return findings
    opened = open_source(entry.source.replace("PLACE", str(place)))
    counts = {name: len(split.keys) for name, split in opened.splits.items()}
    return [*findings, *_counts(entry, counts, len(opened.classes))]


def _check_official(entry: CatalogEntry, found: Inventory) -> list[Finding]:
    findings = [_path(name.replace("|", " or "), there) for name, there in found.needs.items()]
    if found.listing is None:
        return findings
    counts = {}
    for split, images in found.listing.splits.items():
        missing = found.missing(split)
        counts[split] = len(images) - len(missing)
        if missing:
            findings.append(_path(f"{missing[0]} ({split})", False))
    labels = {label for images in found.listing.splits.values() for _, label in images}
    return [*findings, *_counts(entry, counts, len(labels))]


def _path(name: str, there: bool) -> Finding:
    return Finding(name, "there", "there" if there else "missing", there)


def _counts(entry: CatalogEntry, found: Mapping[str, int], classes: int) -> Iterator[Finding]:
    """Images of every split, and classes."""
    for split in dict.fromkeys([*entry.counts, *found]):
        expected, count = entry.counts.get(split), found.get(split, 0)
        wanted = "any" if expected is None else f"{expected:,}"
        yield Finding(f"images of {split}", wanted, f"{count:,}", expected in (None, count) and count > 0)
    if entry.classes:
        yield Finding("classes", f"{entry.classes:,}", f"{classes:,}", classes == entry.classes)
