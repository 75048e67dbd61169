"""The comparison of the student with its teachers, from result rows: HTML, Markdown, pictures, CSV, metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unic_core.config import RunConfig
from unic_core.cost import CostRow
from unic_core.errors import UnicError
from unic_core.evals.results import ResultRow
from unic_core.report import html, markdown, plots
from unic_core.report.cost import cost_metrics
from unic_core.report.document import build_document
from unic_core.report.numbers import metrics_of, winners_of
from unic_core.report.sheets import rows_as_csv
from unic_core.report.summary import summarize
from unic_core.report.tasks import divide, task_gaps, task_metrics, task_sections

__all__ = ["Report", "build_report"]


@dataclass(frozen=True)
class Report:
    """One report in every form. `html` needs no other file; `markdown` shows the pictures that lie beside it.

    `pngs` holds them by file name, `tags` the winner of every data set as `winner.<dataset>`. `metrics` are shares in
    [0, 1], of the student and by the linear probe where nothing else is said:

    - `probe/<dataset>/top1` (and `<dataset>/top1`, the same); `knn/<dataset>/top1`: kNN
    - `probe/mean_top1`, `probe/mean_top1_shift`: means over transfer and over shift sets; absent if one of them
      has no result of the student
    - `probe/mean_top1_error`: standard error of `probe/mean_top1`; `probe/mean_log_odds`: mean of log(p / (1 - p))
    - `relative/<dataset>`: minus the best teacher, with the ends of its interval, `relative_low/<dataset>` and
      `relative_high/<dataset>`; `<dataset>` is `mean` for the mean over the transfer sets
    - `wins/better`, `wins/even`, `wins/worse`: on how many data sets beyond the interval, against the best teacher
    - `models/<model>/<dataset>/top1`, `models/<model>/mean_top1`, `models/<model>/mean_log_odds`: every model
    - `cost/...`: see `unic_core.report.cost.cost_metrics`
    - `probe/failed`: number of results that are missing, of all models and protocols
    - `segmentation/<dataset>/miou`, `depth/<dataset>/rmse` (meters), `zeroshot/<dataset>/top1`, and `tasks/failed`
    """

    html: str
    markdown: str
    pngs: dict[str, bytes]
    csv: str
    metrics: dict[str, float]
    tags: dict[str, str]


def build_report(
    rows: Sequence[ResultRow],
    config: RunConfig,
    history: Sequence[Mapping[str, Any]] = (),
    links: Mapping[str, str] | None = None,
    cost: Sequence[CostRow] = (),
) -> Report:
    """Compare what was measured; what the config asks for and was not measured is shown as missing.

    Args:
        rows: of all data sets, models and protocols, in any order.
        config: of the run.
        history: training metrics as `{"step": n, "loss": x, "loss/<teacher>": x, ...}`, oldest first.
        links: texts and addresses shown at the top.
        cost: of the parts of the run, `unic_core.cost.cost_table`; empty where it is not known.

    Raises:
        UnicError: there are no rows, or two for the same model, data set and protocol.
    """
    if not rows:
        raise UnicError("there are no results to report; evaluate first")
    probes, tasks = divide(rows)
    summary = summarize(probes, config)
    pngs = plots.draw(summary, history)
    document = build_document(
        summary, config, links or {}, history, cost, task_sections(tasks, config), task_gaps(tasks, config)
    )
    return Report(
        html=html.render(document, pngs),
        markdown=markdown.render(document, pngs),
        pngs=pngs,
        csv=rows_as_csv(rows),
        metrics=metrics_of(summary) | cost_metrics(history, cost, summary.tables, config) | task_metrics(tasks, config),
        tags=winners_of(summary),
    )
