"""`unic datasets`: the catalog of the comparison, and whether a local copy is complete."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from workflows import console

if TYPE_CHECKING:
    from unic_core.evals.catalog import CatalogEntry


@click.group(invoke_without_command=True)
@click.pass_context
def datasets(context: click.Context) -> None:
    """List the data sets that the comparison knows."""
    if context.invoked_subcommand is not None:
        return
    from unic_core.evals.catalog import CATALOG

    rows = [
        (e.name, e.task, e.classes or "", _images(e), e.metric, e.protocol, e.license)
        for e in CATALOG
    ]  # fmt: skip
    console.table(("data set", "task", "classes", "images", "metric", "protocol", "license"), rows)
    console.say("more on one of them: unic datasets show NAME; is a copy complete: unic datasets check NAME PATH")


@datasets.command()
@click.argument("name")
def show(name: str) -> None:
    """Say how to obtain data set NAME, what a copy holds and how a config reads it."""
    from unic_core.data.layouts import LAYOUTS
    from unic_core.evals.check import find_entry

    entry = find_entry(name)
    needs = LAYOUTS[name].needs if name in LAYOUTS else entry.needs
    facts = {
        "title": entry.title,
        "task": entry.task,
        "classes": str(entry.classes or "any"),
        "images": _images(entry) or "any",
        "metric": entry.metric,
        "protocol": entry.protocol,
        "license": entry.license,
        "obtain": entry.obtain,
        "holds": ", ".join(need.replace("|", " or ") for need in needs),
        "source": entry.source or "",
        "probe": _probe(entry),
    }
    console.table(("", entry.name), [(key, value) for key, value in facts.items() if value])


@datasets.command()
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path), default=".")
def check(name: str, path: Path) -> int:
    """Compare the copy of data set NAME in the folder PATH with what it should be.

    Exit code 1 when something is missing. Nothing is downloaded.
    """
    from unic_core.evals.check import check_copy, find_entry

    entry = find_entry(name)
    found = check_copy(entry, path)
    console.table(("what", "expected", "found", ""), [(*f[:3], "ok" if f.ok else "wrong") for f in found])
    if all(finding.ok for finding in found):
        reads = f"; source: {entry.source.replace('PLACE', str(path))}" if entry.source else ""
        console.say(f"{entry.title} is complete{reads}")
        return 0
    console.say(f"{entry.title} is incomplete; obtain it from {entry.obtain}")
    return 1


def _images(entry: CatalogEntry) -> str:
    return ", ".join(f"{split} {n:,}" for split, n in entry.counts.items())


def _probe(entry: CatalogEntry) -> str:
    """The line of `evaluation.probes` that measures it as published; empty for other tasks and for any folder."""
    if entry.task != "classification" or not entry.counts:
        return ""
    test = next((split for split in ("test", "val") if split in entry.counts), "test")
    keys = {"dataset": entry.name}
    if "train" not in entry.counts:
        keys |= {"train_on": "imagenet-1k", "group": "shift"}
    keys |= {"test_split": test} if test != "test" else {}
    keys |= {"classifier": "sgd"} if entry.protocol.startswith("sgd") else {}
    return "{" + ", ".join(f"{key}: {value}" for key, value in keys.items()) + "}"
