"""The content of a report, in words and cells, before it becomes HTML or Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from unic_core.config import RunConfig, dump_config
from unic_core.evals.results import Group
from unic_core.report.summary import Dataset, Mean, Model, Summary, Table
from unic_core.teachers.registry import resolve

DASH, MINUS, TIMES, DELTA = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{GREEK CAPITAL LETTER DELTA}"
TITLES = {"logreg": "Linear probe", "knn": "Nearest neighbors"}


class Cell(NamedTuple):
    """Text with a small second line; `tone` is "", "best", "good", "bad", "missing" or "mean"."""

    text: str
    note: str = ""
    tone: str = ""


class Grid(NamedTuple):
    """A table: titles of the columns, then lines of cells; the first column names the line."""

    header: list[str]
    lines: list[list[Cell]]


@dataclass(frozen=True)
class Document:
    """Everything a reader sees, apart from the pictures."""

    title: str
    headline: str
    sentences: list[str]
    grids: dict[str, Grid]  # of results, by title
    captions: dict[str, str]  # below a grid, by the same title
    teachers: Grid
    facts: Grid
    gaps: Grid
    links: dict[str, str]
    config: str  # YAML


def build_document(summary: Summary, config: RunConfig, links: Mapping[str, str]) -> Document:
    """Words and cells of a comparison."""
    table = summary.tables[0]
    return Document(
        title=config.name,
        headline=_headline(table, summary.student),
        sentences=_sentences(table, summary),
        grids={TITLES[t.protocol]: _grid(t, summary.student) for t in summary.tables},
        captions={TITLES[t.protocol]: _caption(t) for t in summary.tables},
        teachers=_teachers(config),
        facts=Grid(["", ""], [[Cell(name), Cell(value)] for name, value in _facts(config).items()]),
        gaps=Grid(
            ["Model", "Data set", "Protocol", "Why"],
            [[Cell(g.model), Cell(g.dataset), Cell(TITLES[g.protocol]), Cell(g.reason)] for g in summary.gaps],
        ),
        links=dict(links),
        config=dump_config(config),
    )


# ---------------------------------------------------------------- sentences


def _headline(table: Table, student: Model) -> str:
    differences = [table.relative(student, dataset) for dataset in table.datasets]
    known = [d for d in differences if d is not None]
    if not known:
        return "The student could not be compared with a teacher on any data set."
    won = sum(d >= 0 for d in known)
    text = f"The student is at or above the best teacher on {won} of {_count(len(known), 'data set')}."
    left = len(differences) - len(known)
    return text + (f" On {left} more it could not be compared." if left else "")


def _sentences(table: Table, summary: Summary) -> list[str]:
    sentences = []
    for group in _groups(table):
        means = [f"{model.name} {_mean(table.mean(model, group))}" for model in table.models]
        sets = _count(sum(d.group == group for d in table.datasets), f"{group} set")
        sentences.append(f"Mean top-1 over {sets}: {', '.join(means)}.")
        odds = {model.name: table.log_odds(model, group) for model in table.models}
        known = [f"{name} {value:.2f}".replace("-", MINUS) for name, value in odds.items() if value is not None]
        if known:
            sentences.append(f"Mean log-odds over {sets}: {', '.join(known)}.")
    close = sum(_within_interval(table, summary.student, dataset) for dataset in table.datasets)
    if close:
        sentences.append(
            f"On {_count(close, 'data set')} where the student is below, the best teacher lies inside the student's "
            "95 % interval."
        )
    partial = sum(0 < over < of for over, of in map(table.teachers_measured, table.datasets))
    if partial:
        sentences.append(f"On {_count(partial, 'data set')} only some of the teachers could be measured.")
    if summary.gaps:
        sentences.append(f"{_count(len(summary.gaps), 'result')} missing or failed; see the end of the report.")
    return sentences


def _within_interval(table: Table, student: Model, dataset: Dataset) -> bool:
    row, best = table.row(student, dataset), table.best_teacher(dataset)
    theirs = table.top1(best, dataset) if best else None
    if row is None or row.top1 is None or row.ci_high is None or theirs is None:
        return False
    return row.top1 < theirs <= row.ci_high


def _mean(mean: Mean) -> str:
    if mean.value is None:
        return "not measured"
    partial = f" (over {mean.over} of {mean.of})" if mean.over < mean.of else ""
    return _percent(mean.value) + partial


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}".replace("-", MINUS)


def _groups(table: Table) -> list[Group]:
    return list(dict.fromkeys(dataset.group for dataset in table.datasets))


# ---------------------------------------------------------------- tables


def _caption(table: Table) -> str:
    if table.protocol == "logreg":
        how = (
            "Logistic regression on frozen features: C is selected on a validation split, then the classifier is "
            "fitted again on all training images."
        )
        by_sgd = sorted({row.dataset for row in table.rows.values() if row.protocol == "sgd"})
        how += f" SGD instead of it on {', '.join(by_sgd)}." if by_sgd else ""
    else:
        ks = sorted({f"{row.hyper['k']:g}" for row in table.rows.values() if "k" in row.hyper})
        how = f"The nearest training images by cosine similarity vote{', k = ' + ' or '.join(ks) if ks else ''}."
    return (
        f"{how} Top-1 in percent with its 95 % interval (bootstrap over test images); the best model is bold. "
        f"{DELTA} is the student minus the best teacher, in points."
    )


def _grid(table: Table, student: Model) -> Grid:
    header = ["Data set", *(model.name for model in table.models), "Best teacher", DELTA]
    lines = []
    for group in _groups(table):
        for dataset in (d for d in table.datasets if d.group == group):
            lines.append(_line(table, student, dataset))
        sets = _count(sum(d.group == group for d in table.datasets), f"{group} set")
        means = [table.mean(model, group) for model in table.models]
        cells = [Cell(_percent(m.value) if m.value is not None else DASH, _over(m), "mean") for m in means]
        lines.append([Cell("Mean", f"over {sets}", "mean"), *cells, Cell("", "", "mean"), Cell("", "", "mean")])
    return Grid(header, lines)


def _over(mean: Mean) -> str:
    return f"over {mean.over} of {mean.of}" if mean.over < mean.of else ""


def _line(table: Table, student: Model, dataset: Dataset) -> list[Cell]:
    top = max((table.top1(model, dataset) or 0.0 for model in table.models), default=0.0)
    sizes = [row.n_test for model in table.models if (row := table.row(model, dataset)) and row.n_test]
    note = ("shift, " if dataset.group == "shift" else "") + (f"{sizes[0]:,} test images" if sizes else "")
    cells = [Cell(dataset.name, note.removesuffix(", "))]
    for model in table.models:
        row = table.row(model, dataset)
        if row is None or row.top1 is None:
            cells.append(Cell(DASH if row is None else "failed", "not evaluated" if row is None else "", "missing"))
            continue
        interval = f"{_percent(row.ci_low or 0.0)}{DASH}{_percent(row.ci_high or 0.0)}"
        cells.append(Cell(_percent(row.top1), interval, "best" if row.top1 == top else ""))
    best, difference = table.best_teacher(dataset), table.relative(student, dataset)
    over, of = table.teachers_measured(dataset)
    cells.append(Cell(best.name if best else DASH, f"of {over} measured of {of}" if over < of else ""))
    if difference is None:
        return [*cells, Cell(DASH, "", "missing")]
    return [*cells, Cell(_points(difference), "", "good" if difference >= 0 else "bad")]


def _teachers(config: RunConfig) -> Grid:
    lines = []
    for teacher in config.teachers:
        spec = resolve(teacher)
        size = f"{spec.parameters:.1f} M" if spec.parameters else DASH
        lines.append(
            [Cell(teacher.name), Cell(spec.model), Cell(size), Cell(" + ".join(teacher.tokens)), Cell(spec.license)]
        )
    return Grid(["Teacher", "Model", "Parameters", "Tokens", "License"], lines)


def _facts(config: RunConfig) -> dict[str, str]:
    """The run in a few lines; the whole config follows it."""
    training, balancer = config.training, config.balancer
    length = f"{training.steps:,} steps" if training.steps else f"{training.epochs:g} epochs"
    drop = f" (p = {balancer.drop:g})" if balancer.kind in {"loss_ranked", "uniform"} else ""
    mix = (f"{m.dataset} ({m.split}{'' if m.weight == 1 else f', {TIMES} {m.weight:g}'})" for m in config.data.train)
    return {
        "Student": f"{config.student.model}, {config.student.image_size} px",
        "Projector": config.projector.kind,
        "Standardizer": config.standardizer.kind,
        "Balancer": config.balancer.kind + drop,
        "Training images": ", ".join(mix),
        "Training": f"{length} of {training.batch} images, {training.precision}",
        "Learning rate": f"{config.optimizer.lr:g} per 256 images",
        "Workers": str(config.cluster.workers),
        "Features": {"cls": "cls token", "patch": "mean patch token", "both": "cls and mean patch token"}[
            config.evaluation.token
        ],
        "Seed": str(config.seed),
    }
