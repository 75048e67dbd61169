"""The students of several runs side by side, from their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from unic_core.errors import UnicError
from unic_core.evals.results import ResultRow
from unic_core.report.tasks import divide


class Line(NamedTuple):
    """One data set (or mean) under one protocol: the student's row or mean top-1 of every run; None where missing.

    best: runs whose interval reaches the highest top-1; empty where fewer than two runs were measured.
    """

    dataset: str
    protocol: str
    rows: tuple[ResultRow | None, ...]
    values: tuple[float | None, ...]
    best: tuple[str, ...]


def compare_students(runs: Mapping[str, Sequence[ResultRow]]) -> list[Line]:
    """One line per data set and protocol, in the order in which they occur, then means of the transfer sets.

    A mean is over the sets that every run was measured on, so that all means are over the same images.

    Raises:
        UnicError: fewer than two runs, or one without a student's rows.
    """
    if len(runs) < 2:
        raise UnicError("a comparison needs at least two runs; name them by their URIs")
    students = {
        run: {(row.dataset, row.protocol): row for row in divide(rows).probes if row.role == "student"}
        for run, rows in runs.items()
    }
    for run, found in students.items():
        if not found:
            raise UnicError(f"run {run} has no results of a student; run `unic evaluate` for it first")
    keys = dict.fromkeys(key for found in students.values() for key in found)
    lines = [_line(key, {run: found.get(key) for run, found in students.items()}) for key in keys]
    for protocol in dict.fromkeys(line.protocol for line in lines):
        full = [line for line in lines if line.protocol == protocol and None not in line.values and _transfer(line)]
        if full:
            means = tuple(sum(line.values[i] or 0.0 for line in full) / len(full) for i in range(len(runs)))
            lines.append(Line(f"mean of {len(full)}", protocol, (None,) * len(runs), means, ()))
    return lines


def _line(key: tuple[str, str], rows: Mapping[str, ResultRow | None]) -> Line:
    values = {run: row.top1 if row else None for run, row in rows.items()}
    known = [value for value in values.values() if value is not None]
    top = max(known, default=0.0)
    best = [run for run, row in rows.items() if row and row.ci_high is not None and row.ci_high >= top]
    return Line(*key, tuple(rows.values()), tuple(values.values()), tuple(best) if len(known) > 1 else ())


def _transfer(line: Line) -> bool:
    return all(row is not None and row.group == "transfer" for row in line.rows)
