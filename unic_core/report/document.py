"""The content of a report on one run, in words and cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unic_core.config import RunConfig, dump_config
from unic_core.cost import CostRow
from unic_core.evals.difference import Difference, mean_difference
from unic_core.evals.results import Group
from unic_core.report import duels
from unic_core.report.cells import (
    DASH,
    DELTA,
    MINUS,
    PLUS_MINUS,
    TIMES,
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
from unic_core.report.cost import cost_sections, training_facts
from unic_core.report.summary import Dataset, Mean, Model, Summary, Table
from unic_core.teachers.registry import resolve

TITLES = {"logreg": "Linear probe", "knn": "Nearest neighbors"}
_NORMAL = 1.96  # standard errors in half a 95 % interval


def build_document(
    summary: Summary,
    config: RunConfig,
    links: Mapping[str, str],
    history: Sequence[Mapping[str, Any]] = (),
    cost: Sequence[CostRow] = (),
    tasks: Sequence[Section] = (),
    gaps: Sequence[list[Cell]] = (),
) -> Document:
    """Words and cells of a comparison; `tasks` are sections about other things than top-1, `gaps` what they lack."""
    table, student = summary.tables[0], summary.student
    probed = [Section(TITLES[t.protocol], _grid(t, student), _caption(t), "results") for t in summary.tables]
    sections = [
        *([probed[0], *_duels(table, student), *probed[1:]] if table.datasets else []),
        *tasks,
        Section("Teachers", _teachers(config)),
        *cost_sections(cost, summary.tables),
        _run(config, history),
    ]
    lines = [[Cell(g.model), Cell(g.dataset), Cell(TITLES[g.protocol]), Cell(g.reason)] for g in summary.gaps]
    lines += gaps
    if lines:
        grid = Grid(["Model", "Data set", "Protocol", "Why"], lines)
        sections.append(Section("Missing and failed", grid, kind="gaps"))
    return Document(
        title=config.name,
        headline=_headline(table, student),
        sentences=_sentences(table, summary),
        sections=sections,
        links=links,
        config=dump_config(config),
    )


def _duels(table: Table, student: Model) -> list[Section]:
    teachers = [model for model in table.models if model.role == "teacher"]
    if not teachers:
        return []
    pairs = [duels.Pair(f"against {teacher.name}", student, teacher) for teacher in teachers]
    caption = (
        "The student minus each teacher, linear probe, in points with the 95 % interval of the difference; colored "
        "where it leaves out 0. The winner has the highest top-1 of all models; even are those whose difference from "
        f"it may be chance. {duels.how_compared(table, pairs)}"
    )
    grid = duels.duel_grid(table, pairs, [dataset for dataset in table.datasets if dataset.group == "transfer"])
    return [Section("Student against each teacher", grid, caption, "results")]


# ---------------------------------------------------------------- sentences


def _headline(table: Table, student: Model) -> str:
    if not table.datasets:
        return "No data set was probed: the results are those of the other tasks."
    differences = [table.relative(student, dataset) for dataset in table.datasets]
    known = [d for d in differences if d is not None]
    if not known:
        return "The student could not be compared with a teacher on any data set."
    won = sum(d >= 0 for d in known)
    text = f"The student is at or above the best teacher on {won} of {count(len(known), 'data set')}."
    left = len(differences) - len(known)
    return text + (f" On {left} more it could not be compared." if left else "")


def _sentences(table: Table, summary: Summary) -> list[str]:
    sentences = []
    for group in _groups(table):
        means = [f"{model.name} {_mean(table.mean(model, group))}" for model in table.models]
        sets = count(sum(d.group == group for d in table.datasets), f"{group} set")
        sentences.append(f"Mean top-1 over {sets}: {', '.join(means)}.")
    won = duels.tally([d.verdict for d in duels.against_best(table, summary.student).values()])
    if sum(won):
        sentences.append(
            f"Beyond the 95 % interval of the difference, the student is better than the best teacher on {won.better}, "
            f"worse on {won.worse}; {won.even} may be chance."
        )
    partial = sum(0 < over < of for over, of in map(table.teachers_measured, table.datasets))
    if partial:
        sentences.append(f"On {count(partial, 'data set')} only some of the teachers could be measured.")
    if summary.gaps:
        sentences.append(f"{count(len(summary.gaps), 'result')} missing or failed; see the end of the report.")
    return sentences


def _mean(mean: Mean) -> str:
    if mean.value is None:
        return "not measured"
    partial = f" (over {mean.over} of {mean.of})" if mean.over < mean.of else ""
    return percent(mean.value) + partial


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
        f"{DELTA} is the student minus the best teacher, in points, with the interval of the difference; it is colored "
        "where that leaves out 0."
    )


def _grid(table: Table, student: Model) -> Grid:
    header = ["Data set", *(model.name for model in table.models), "Best teacher", DELTA]
    ahead = duels.against_best(table, student)
    lines = []
    for group in _groups(table):
        datasets = [dataset for dataset in table.datasets if dataset.group == group]
        lines += [_line(table, dataset, ahead.get(dataset)) for dataset in datasets]
        lines += _means(table, group, datasets, ahead)
    return Grid(header, lines)


def _means(
    table: Table, group: Group, datasets: Sequence[Dataset], ahead: Mapping[Dataset, Difference]
) -> list[list[Cell]]:
    """Mean top-1 and mean log-odds over the sets of one group."""
    sets, empty = count(len(datasets), f"{group} set"), Cell("", "", "mean")
    relative = mean_difference([ahead[dataset] for dataset in datasets]) if set(datasets) <= ahead.keys() else None
    delta = as_mean(difference_cell(relative)) if relative else empty
    line = [Cell("Mean", f"over {sets}", "mean"), *(_mean_cell(table, m, group) for m in table.models), empty, delta]
    odds = [table.log_odds(model, group) for model in table.models]
    if all(value is None for value in odds):
        return [line]
    texts = [DASH if value is None else f"{value:.2f}".replace("-", MINUS) for value in odds]
    return [line, [Cell("Mean log-odds", "", "mean"), *(Cell(text, "", "mean") for text in texts), empty, empty]]


def _mean_cell(table: Table, model: Model, group: Group) -> Cell:
    mean, error = table.mean(model, group), table.mean_error(model, group)
    note = f"{PLUS_MINUS} {percent(_NORMAL * error)}" if error is not None else ""
    note = f"over {mean.over} of {mean.of}" if mean.over < mean.of else note
    return Cell(percent(mean.value) if mean.value is not None else DASH, note, "mean")


def _line(table: Table, dataset: Dataset, ahead: Difference | None) -> list[Cell]:
    top = max((table.top1(model, dataset) or 0.0 for model in table.models), default=0.0)
    sizes = [row.n_test for model in table.models if (row := table.row(model, dataset)) and row.n_test]
    note = ("shift, " if dataset.group == "shift" else "") + (f"{sizes[0]:,} test images" if sizes else "")
    rows = [table.row(model, dataset) for model in table.models]
    scores = [score_cell(row, row is not None and row.top1 == top) for row in rows]
    best, (over, of) = table.best_teacher(dataset), table.teachers_measured(dataset)
    teacher = Cell(best.name if best else DASH, f"of {over} measured of {of}" if over < of else "")
    return [Cell(dataset.name, note.removesuffix(", ")), *scores, teacher, difference_cell(ahead)]


def _teachers(config: RunConfig) -> Grid:
    lines = []
    for teacher in config.teachers:
        spec = resolve(teacher)
        size = f"{spec.parameters:.1f} M" if spec.parameters else DASH
        lines.append(
            [Cell(teacher.name), Cell(spec.model), Cell(size), Cell(" + ".join(teacher.tokens)), Cell(spec.license)]
        )
    return Grid(["Teacher", "Model", "Parameters", "Tokens", "License"], lines)


def _run(config: RunConfig, history: Sequence[Mapping[str, Any]]) -> Section:
    """The run in a few lines; the whole config follows it."""
    facts = _facts(config) | training_facts(history, config)
    return Section("Run", Grid(["", ""], [[Cell(name), Cell(value)] for name, value in facts.items()]), kind="facts")


def _facts(config: RunConfig) -> dict[str, str]:
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
