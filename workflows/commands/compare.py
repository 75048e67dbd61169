"""`unic compare`: the students of any runs side by side."""

from __future__ import annotations

import click

from unic_core.errors import UnicError
from workflows import console


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...")
def compare(runs: tuple[str, ...]) -> None:
    """Compare the students of any runs.

    RUN is the directory or URI of a run, such as s3://bucket/unic/runs/my-student.

    Top-1 in percent with its 95 % interval; `best` names every run whose interval reaches the highest top-1.
    Segmentation, depth and zero-shot classification have a table of their own.
    """
    from unic_core.report.compare import compare_students
    from unic_core.report.tasks import compare_tasks
    from unic_core.storage import open_store
    from workflows import steps

    names = [run.rstrip("/").rpartition("/")[2] for run in runs]
    if len(set(names)) < len(names):
        names = [run.rstrip("/") for run in runs]
    if len(set(names)) < len(names):
        raise UnicError("a run is named twice; name different runs")
    rows = {n: steps.read_rows(open_store(run)) for n, run in zip(names, runs, strict=True)}
    lines = compare_students(rows)
    cells = []
    for line in lines:
        scores = []
        for row, value in zip(line.rows, line.values, strict=True):
            if row is not None and row.error is not None:
                scores.append("failed")
            elif value is None:
                scores.append("not evaluated")
            else:
                spread = f" ({100 * (row.ci_low or 0):.1f} to {100 * (row.ci_high or 0):.1f})" if row else ""
                scores.append(f"{100 * value:.1f}{spread}")
        cells.append((line.dataset, line.protocol, *scores, ", ".join(line.best)))
    console.table(("data set", "protocol", *names, "best"), cells)
    tasks = compare_tasks(rows)
    if tasks:
        console.table(("task", "data set", "metric", *names, "best"), tasks)
