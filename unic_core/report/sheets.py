"""Result rows as CSV, for spreadsheets."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unic_core.evals.results import ResultRow

_COLUMNS = [name for name in ResultRow.model_fields if name not in {"versions", "hits"}]


def rows_as_csv(rows: Sequence[ResultRow]) -> str:
    """Every row as a line; hits and versions are in the JSON."""
    return _sheet(_COLUMNS, map(_line, rows))


def runs_as_csv(runs: Mapping[str, Sequence[ResultRow]]) -> str:
    """The same for several runs, their names in the first column."""
    return _sheet(["run", *_COLUMNS], ({"run": run} | _line(row) for run, rows in runs.items() for row in rows))


def _line(row: ResultRow) -> dict[str, Any]:
    values = row.model_dump(include=set(_COLUMNS))
    return values | {key: json.dumps(values[key]) for key in ("hyper", "details")}


def _sheet(columns: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()
