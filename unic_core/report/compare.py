"""The students of several runs against each other, from their rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from unic_core.errors import UnicError
from unic_core.evals.results import ResultRow
from unic_core.report import duels, html, plots
from unic_core.report.cells import (
    DASH,
    MINUS,
    Cell,
    Document,
    Grid,
    Section,
    as_mean,
    count,
    difference_cell,
    percent,
    score_cell,
)
from unic_core.report.document import TITLES
from unic_core.report.duels import Pair
from unic_core.report.summary import PROTOCOLS, Dataset, Model, Table, table_of
from unic_core.report.tasks import TITLE, compare_tasks, divide, tasks_header


@dataclass(frozen=True)
class Comparison:
    """One table per protocol that was measured; the models are the students, called by the names of their runs.

    The first run is what the others are compared with. `settings` are the keys of the configs that differ, with the
    value of every run; `tasks` what segmentation, depth and zero-shot classification gave, line by line.
    """

    tables: tuple[Table, ...]
    tasks: tuple[tuple[str, ...], ...] = ()
    settings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def runs(self) -> tuple[Model, ...]:
        return self.tables[0].models

    @property
    def pairs(self) -> list[Pair]:
        """Every other run against the first one."""
        first, *others = self.runs
        return [Pair(f"{other.name} {MINUS} {first.name}", other, first) for other in others]


def compare_runs(
    runs: Mapping[str, Sequence[ResultRow]], configs: Mapping[str, Mapping[str, str]] | None = None
) -> Comparison:
    """Arrange the students' rows of several runs; data sets in the order in which they occur.

    Args:
        runs: the rows of each run, by its name.
        configs: the configs of the runs as dotted keys and texts, where they are known.

    Raises:
        UnicError: fewer than two runs, or one without a student's rows.
    """
    if len(runs) < 2:
        raise UnicError("a comparison needs at least two runs; name them by their URIs or their ids in MLflow")
    students = {run: [row for row in divide(rows).probes if row.role == "student"] for run, rows in runs.items()}
    for run, rows in runs.items():
        if not any(row.role == "student" for row in rows):
            raise UnicError(f"run {run} has no results of a student; run `unic evaluate` for it first")
    models = tuple(Model(run, "student") for run in runs)
    everything = [row.model_copy(update={"model": run}) for run, found in students.items() for row in found]
    groups = {row.dataset: row.group for row in reversed(everything)}
    datasets = [Dataset(name, groups[name]) for name in dict.fromkeys(row.dataset for row in everything)]
    ordered = tuple(sorted(datasets, key=lambda dataset: dataset.group == "shift"))
    tables = tuple(table_of(everything, protocol, models, ordered) for protocol in PROTOCOLS)
    measured = tuple(table for table in tables if table.rows) or tables[:1]
    return Comparison(measured, compare_tasks(runs), _differing(list(runs), configs or {}))


def common_sets(table: Table) -> list[Dataset]:
    """Transfer sets that every run was measured on, with the same images: what means are taken over."""
    return [
        dataset
        for dataset in table.datasets
        if dataset.group == "transfer"
        and all(table.top1(model, dataset) is not None for model in table.models)
        and not duels.different_images(table, dataset)
    ]


def common_mean(table: Table, model: Model) -> float | None:
    """Mean top-1 over the common sets; None without any."""
    scores = [table.top1(model, dataset) or 0.0 for dataset in common_sets(table)]
    return sum(scores) / len(scores) if scores else None


def winner_text(table: Table, dataset: Dataset) -> str:
    """`b`, or `b (even: a)` where the difference may be chance; empty where fewer than two runs were measured."""
    measured = sum(table.top1(model, dataset) is not None for model in table.models)
    found = duels.winner(table, dataset) if measured > 1 else None
    if found is None:
        return "different images" if duels.different_images(table, dataset) else ""
    return str(found)


def comparison_page(comparison: Comparison, links: Mapping[str, str] | None = None) -> str:
    """The comparison as one self-contained HTML page; `links` are texts and addresses shown at the top."""
    sections = []
    for table in comparison.tables:
        if not table.datasets:
            continue
        title = TITLES[table.protocol]
        sections.append(Section(title, _scores(table), "Top-1 in percent with its 95 % interval.", "results"))
        grid = duels.duel_grid(table, comparison.pairs, common_sets(table))
        caption = (
            "Differences in points with their 95 % intervals; colored where these leave out 0. "
            f"{duels.how_compared(table, comparison.pairs)}"
        )
        sections.append(Section(f"{title}: against {comparison.runs[0].name}", grid, caption, "results"))
    if comparison.tasks:
        lines = [[Cell(text) for text in line] for line in comparison.tasks]
        grid = Grid(tasks_header(run.name for run in comparison.runs), lines)
        sections.append(Section(TITLE, grid, "Best are all runs whose 95 % interval reaches it.", "results"))
    if comparison.settings:
        header = ["Setting", *(run.name for run in comparison.runs)]
        lines = [[Cell(key), *map(Cell, values)] for key, values in comparison.settings.items()]
        sections.append(Section("What differs in the configs", Grid(header, lines)))
    names = ", ".join(run.name for run in comparison.runs)
    document = Document(f"Comparison of {names}", _headline(comparison), _sentences(comparison), sections, links or {})
    return html.render(document, plots.draw_table(comparison.tables[0]))


def comparison_json(runs: Mapping[str, Sequence[ResultRow]], comparison: Comparison) -> str:
    """Rows of all runs and what follows from them: winners, and differences from the first run."""
    results = []
    for table in comparison.tables:
        for dataset in table.datasets:
            found = {p.one.name: duels.duel(table, p.one, p.other, dataset) for p in comparison.pairs}
            winner = duels.winner(table, dataset)
            results.append(
                {
                    "dataset": dataset.name,
                    "protocol": table.protocol,
                    "winner": winner.best.name if winner else None,
                    "even": [model.name for model in winner.even] if winner else [],
                    "differences": {
                        name: d._asdict() | {"verdict": d.verdict} if d else None for name, d in found.items()
                    },
                }
            )
    rows = {run: [row.model_dump(mode="json") for row in found] for run, found in runs.items()}
    first = comparison.runs[0].name
    return json.dumps({"compared_with": first, "results": results, "rows": rows}, indent=1) + "\n"


def _scores(table: Table) -> Grid:
    lines = []
    for dataset in table.datasets:
        rows = [table.row(model, dataset) for model in table.models]
        top = max((row.top1 or 0.0 for row in rows if row is not None), default=0.0)
        note = "shift" if dataset.group == "shift" else ""
        lines.append([Cell(dataset.name, note), *(score_cell(r, r is not None and r.top1 == top) for r in rows)])
    common = common_sets(table)
    if common:
        means = [common_mean(table, model) for model in table.models]
        over = f"over {count(len(common), 'transfer set')} that all runs have"
        cells = [Cell(DASH if mean is None else percent(mean)) for mean in means]
        lines.append([Cell("Mean", over, "mean"), *map(as_mean, cells)])
    return Grid(["Data set", *(model.name for model in table.models)], lines)


def _headline(comparison: Comparison) -> str:
    table = comparison.tables[0]
    if not table.datasets:
        return "None of these runs was probed: the results are those of the other tasks."
    means = {m: mean for m in table.models if (mean := common_mean(table, m)) is not None}
    if not means:
        return "No transfer set was measured, on the same images, for all of these runs."
    best = max(means, key=lambda m: means[m])
    duel = [duels.mean_duel(table, best, m, common_sets(table)) for m in means if m != best]
    clear = all(d is not None and d.verdict == "better" for d in duel)
    beyond = "beyond the 95 % interval" if clear else "though not beyond the 95 % interval"
    sets = count(len(common_sets(table)), "transfer set")
    return f"{best.name} has the highest mean top-1 over {sets}, {percent(means[best])}, {beyond}."


def _sentences(comparison: Comparison) -> list[str]:
    table, sentences = comparison.tables[0], []
    for pair in comparison.pairs if table.datasets else ():
        verdicts = [d.verdict for s in table.datasets if (d := duels.duel(table, pair.one, pair.other, s)) is not None]
        won = duels.tally(verdicts)
        mean = difference_cell(duels.mean_duel(table, pair.one, pair.other, common_sets(table)))
        overall = f"; mean difference {mean.text} ({mean.note})" if mean.note else ""
        sentences.append(
            f"{pair.one.name} against {pair.other.name}: better on {won.better}, even on {won.even}, worse on "
            f"{won.worse}{overall}."
        )
    odd = [dataset.name for dataset in table.datasets if duels.different_images(table, dataset)]
    if odd:
        sentences.append(f"Not compared, because the runs saw different images: {', '.join(odd)}.")
    return sentences


def _differing(runs: Sequence[str], configs: Mapping[str, Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    """Keys whose values differ between the runs; none unless every config is known."""
    if not set(runs) <= configs.keys():
        return {}
    keys = dict.fromkeys(key for run in runs for key in configs[run])
    values = {key: tuple(configs[run].get(key, DASH) for run in runs) for key in keys}
    return {key: found for key, found in values.items() if len(set(found)) > 1 and key != "name"}
