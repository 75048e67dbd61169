"""`unic compare`: the students of any runs side by side."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from unic_core.errors import UnicError
from workflows import console

if TYPE_CHECKING:
    from unic_core.evals.difference import Difference
    from unic_core.evals.results import ResultRow
    from unic_core.report.compare import Comparison

FILE = click.Path(path_type=Path, dir_okay=False, writable=True)
_TWICE = "a run is named twice; name different runs"
_MLFLOW_ID = re.compile(r"(?:runs:/)?([0-9a-f]{32})")


class _Run(NamedTuple):
    """What is known of a run; `address` is where a person finds it."""

    name: str
    address: str
    rows: list[ResultRow]
    config: bytes | None


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...")
@click.option("--html", "html_file", type=FILE, help="Write the comparison as a self-contained page.")
@click.option("--csv", "csv_file", type=FILE, help="Write all rows of all runs.")
@click.option("--json", "json_file", type=FILE, help="Write all rows, differences and winners.")
def compare(runs: tuple[str, ...], html_file: Path | None, csv_file: Path | None, json_file: Path | None) -> None:
    """Compare the students of any runs with the first one.

    RUN is the directory or URI of a run, such as s3://bucket/unic/runs/my-student, or the id of its run in MLflow.

    Top-1 in percent with its 95 % interval, then differences from the first run in points with theirs: paired, image
    by image, where the rows allow it. The winner has the highest top-1; `even` are those whose difference from it may
    be chance. Segmentation, depth and zero-shot classification have a table of their own.
    """
    from unic_core.report.compare import compare_runs, comparison_json, comparison_page
    from unic_core.report.sheets import runs_as_csv

    if len(set(runs)) < len(runs):
        raise UnicError(_TWICE)
    found = _named([_read(run) for run in runs])
    rows = {run.name: run.rows for run in found}
    comparison = compare_runs(rows, {run.name: _flat(run.config) for run in found if run.config})
    _show(comparison)
    if html_file:
        _write(html_file, comparison_page(comparison, {run.name: run.address for run in found}))
    if csv_file:
        _write(csv_file, runs_as_csv(rows))
    if json_file:
        _write(json_file, comparison_json(rows, comparison))


def _read(run: str) -> _Run:
    match = _MLFLOW_ID.fullmatch(run)
    return _from_mlflow(match[1]) if match and not Path(run).exists() else _from_store(run.rstrip("/"))


def _from_store(uri: str) -> _Run:
    from unic_core.storage import open_store
    from workflows import steps

    store = open_store(uri)
    config = store.get("config.yaml") if store.exists("config.yaml") else None
    return _Run(uri.rpartition("/")[2], uri, steps.read_rows(store), config)


def _from_mlflow(run_id: str) -> _Run:
    from unic_core.evals.results import load_rows
    from workflows import tracking

    tracking.check_reachable()
    stored = tracking.read_artifact(run_id, "report/rows.json")
    if stored is None:
        raise UnicError(
            f"run {run_id} in MLflow has no report/rows.json; name a parent run, and run `unic report` for it first"
        )
    rows = load_rows(stored, f"report/rows.json of run {run_id}")
    address = tracking.run_url(run_id) or run_id
    return _Run(tracking.run_name(run_id), address, rows, tracking.read_artifact(run_id, "config.yaml"))


def _named(runs: Sequence[_Run]) -> list[_Run]:
    """The runs under short names where these are different, else under their addresses."""
    if len({run.name for run in runs}) == len(runs):
        return list(runs)
    if len({run.address for run in runs}) < len(runs):
        raise UnicError(_TWICE)
    return [run._replace(name=run.address) for run in runs]


def _flat(config: bytes | None) -> dict[str, str]:
    """Dotted keys and texts of a config, so that two can be compared line by line."""
    from unic_core.config import parse_yaml

    return dict(_leaves(parse_yaml((config or b"").decode(), "config.yaml")))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in items:
            yield from _leaves(part, f"{path}.{key}" if path else str(key))
    else:
        yield path, str(value)


def _show(comparison: Comparison) -> None:
    """The table in the terminal, one line per data set and protocol, and how to read it."""
    from unic_core.report.compare import common_mean, common_sets, winner_text
    from unic_core.report.duels import duel, how_compared, mean_duel

    lines = []
    for table in comparison.tables:
        for dataset in table.datasets:
            rows = [table.row(model, dataset) for model in table.models]
            if not any(rows):
                continue
            differences = [_difference(duel(table, pair.one, pair.other, dataset)) for pair in comparison.pairs]
            scores = map(_score, rows)
            lines.append((dataset.name, table.protocol, *scores, *differences, winner_text(table, dataset)))
        common = common_sets(table)
        if common:
            means = [f"{100 * (common_mean(table, model) or 0.0):.1f}" for model in table.models]
            differences = [_difference(mean_duel(table, pair.one, pair.other, common)) for pair in comparison.pairs]
            lines.append((f"mean of {len(common)}", table.protocol, *means, *differences, ""))
    names = [run.name for run in comparison.runs]
    against = [f"{name} - {names[0]}" for name in names[1:]]
    if lines:
        console.table(("data set", "protocol", *names, *against, "winner"), lines)
        console.say(how_compared(comparison.tables[0], comparison.pairs))
    if comparison.tasks:
        console.table(("task", "data set", "metric", *names, "best"), comparison.tasks)


def _score(row: ResultRow | None) -> str:
    if row is None:
        return "not evaluated"
    if row.top1 is None:
        return "failed"
    return f"{100 * row.top1:.1f} ({100 * (row.ci_low or 0):.1f} to {100 * (row.ci_high or 0):.1f})"


def _difference(found: Difference | None) -> str:
    if found is None:
        return ""
    return f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UnicError(f"cannot write {path}: {error.strerror}; choose another file") from None
    console.say(f"wrote {path}")
