"""The comparison of the student with its teachers, from result rows: HTML, Markdown, pictures, CSV, metrics."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unic_core.config import RunConfig
from unic_core.evals.results import ResultRow
from unic_core.report import html, markdown, plots
from unic_core.report.document import build_document
from unic_core.report.summary import Summary, summarize
from unic_core.report.tasks import add_tasks, divide, task_metrics

__all__ = ["Report", "build_report"]

_COLUMNS = [name for name in ResultRow.model_fields if name != "versions"]


@dataclass(frozen=True)
class Report:
    """One report in every form. `html` needs no other file; `markdown` shows the pictures that lie beside it.

    `pngs` holds them by file name. `metrics` are the student's scores, shares in [0, 1]:

    - `probe/<dataset>/top1` (and `<dataset>/top1`, the same): logistic regression; `knn/<dataset>/top1`: kNN
    - `relative/<dataset>`: top-1 minus that of the best teacher, logistic regression
    - `probe/mean_top1`, `probe/mean_top1_shift`: means over transfer and over shift sets; absent if one of them
      has no result of the student
    - `probe/mean_top1_error`: standard error of `probe/mean_top1`; `probe/mean_log_odds`: mean of log(p / (1 - p))
    - `probe/failed`: number of results that are missing, of all models and protocols
    - `segmentation/<dataset>/miou`, `depth/<dataset>/rmse` (meters), `zeroshot/<dataset>/top1`, and `tasks/failed`
    """

    html: str
    markdown: str
    pngs: dict[str, bytes]
    csv: str
    metrics: dict[str, float]


def build_report(
    rows: Sequence[ResultRow],
    config: RunConfig,
    history: Sequence[Mapping[str, Any]] = (),
    links: Mapping[str, str] | None = None,
) -> Report:
    """Compare what was measured; what the config asks for and was not measured is shown as missing.

    Args:
        rows: of all data sets, models and protocols, in any order.
        config: of the run.
        history: training metrics as `{"step": n, "loss": x, "loss/<teacher>": x, ...}`, oldest first.
        links: texts and addresses shown at the top.

    Raises:
        UnicError: there are no rows, or two for the same model, data set and protocol.
    """
    probes, tasks = divide(rows)
    summary = summarize(probes, config)
    pngs = plots.draw(summary, history)
    document = add_tasks(build_document(summary, config, links or {}), tasks, config)
    return Report(
        html=html.render(document, pngs),
        markdown=markdown.render(document, pngs),
        pngs=pngs,
        csv=_csv(rows),
        metrics=_metrics(summary) | task_metrics(tasks, config),
    )


def _csv(rows: Sequence[ResultRow]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values = row.model_dump(include=set(_COLUMNS))
        writer.writerow(values | {key: json.dumps(values[key]) for key in ("hyper", "details")})
    return out.getvalue()


def _metrics(summary: Summary) -> dict[str, float]:
    metrics: dict[str, float] = {"probe/failed": float(len(summary.gaps))}
    student = summary.student
    for table in summary.tables:
        prefix = "probe" if table.protocol == "logreg" else "knn"
        for dataset in table.datasets:
            top1 = table.top1(student, dataset)
            if top1 is not None:
                metrics[f"{prefix}/{dataset.name}/top1"] = top1
    logreg = summary.tables[0]
    for dataset in logreg.datasets:
        top1, relative = logreg.top1(student, dataset), logreg.relative(student, dataset)
        if top1 is not None:
            metrics[f"{dataset.name}/top1"] = top1
        if relative is not None:
            metrics[f"relative/{dataset.name}"] = relative
    means = {
        "probe/mean_top1": logreg.mean(student, "transfer"),
        "probe/mean_top1_shift": logreg.mean(student, "shift"),
    }
    for name, mean in means.items():
        if mean.value is not None and mean.over == mean.of:
            metrics[name] = mean.value
    details = {
        "probe/mean_top1_error": logreg.mean_error(student, "transfer"),
        "probe/mean_log_odds": logreg.log_odds(student, "transfer"),
    }
    metrics |= {name: value for name, value in details.items() if value is not None}
    return metrics
