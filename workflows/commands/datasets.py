"""`unic datasets`: the catalog of the comparison, and whether a local copy is complete."""

from __future__ import annotations

from pathlib import Path

import click

from workflows import console


@click.group(invoke_without_command=True)
@click.pass_context
def datasets(context: click.Context) -> None:
    """List the data sets that the comparison knows."""
    if context.invoked_subcommand is not None:
        return
    from unic_core.evals.catalog import CATALOG

    rows = [
        (e.name, e.task, e.classes or "", ", ".join(f"{k} {n:,}" for k, n in e.counts.items()), e.metric, e.protocol,
         e.license)
        for e in CATALOG
    ]  # fmt: skip
    console.table(("data set", "task", "classes", "images", "metric", "protocol", "license"), rows)


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
