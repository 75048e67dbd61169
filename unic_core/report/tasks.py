"""Segmentation, depth and zero-shot classification in the report and in comparisons of runs.

Their rows have metrics of their own, so they never enter the means, pictures and promotion of the probes' top-1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from unic_core.config import RunConfig, TaskConfig
from unic_core.errors import UnicError
from unic_core.evals.results import TASKS, Metric, ResultRow, Role, format_score
from unic_core.report.cells import DASH, DELTA, MINUS, Cell, Grid, Section

TITLE = "Dense and zero-shot tasks"
NAMES = {"segmentation": "Segmentation", "depth": "Depth", "zeroshot": "Zero-shot"}
METRICS: dict[Metric, str] = {"miou": "mIoU, higher is better", "rmse": "RMSE, lower is better", "top1": "top-1"}
LOWER: frozenset[Metric] = frozenset({"rmse"})
CAPTION = (
    "Heads on frozen patch tokens: mIoU of a linear classifier of patches, RMSE in meters of a linear map to depth "
    "bins. Zero-shot: the student's prediction of the teacher against the embeddings of class names. With the 95 % "
    "interval (bootstrap over test images); the best model is bold. "
    f"{DELTA} is the student minus the best teacher, in points, or in meters, where less is better."
)


class Divided(NamedTuple):
    """Rows of the probes and rows of the tasks."""

    probes: list[ResultRow]
    tasks: list[ResultRow]


def divide(rows: Iterable[ResultRow]) -> Divided:
    """Both kinds of rows, in their order."""
    found = list(rows)
    return Divided([r for r in found if r.protocol not in TASKS], [r for r in found if r.protocol in TASKS])


def better(metric: Metric, a: float, b: float) -> bool:
    """Whether score `a` is better than `b`."""
    return a < b if metric in LOWER else a > b


def task_metrics(rows: Sequence[ResultRow], config: RunConfig) -> dict[str, float]:
    """The student's scores as `<task>/<dataset>/<metric>`, and the number of missing results; none without tasks."""
    if not rows and not config.evaluation.tasks:
        return {}
    scores = {f"{r.protocol}/{r.dataset}/{r.metric}": r.score for r in rows if r.role == "student"}
    known = {name: score for name, score in scores.items() if score is not None}
    return known | {"tasks/failed": float(len(_gaps(rows, config)))}


def task_sections(rows: Sequence[ResultRow], config: RunConfig) -> list[Section]:
    """A table of the tasks; none where there are no tasks.

    Raises:
        UnicError: two rows of the same model and task.
    """
    if not rows and not config.evaluation.tasks:
        return []
    _refuse_doubles(rows)
    return [Section(TITLE, task_grid(rows, config), CAPTION, "results")]


def task_gaps(rows: Sequence[ResultRow], config: RunConfig) -> list[list[Cell]]:
    """A line of model, data set, task and reason for every result that is missing."""
    return [
        [Cell(row.model), Cell(row.dataset), Cell(NAMES[row.protocol]), Cell(row.error or "not evaluated")]
        for row in _gaps(rows, config)
    ]


def task_grid(rows: Sequence[ResultRow], config: RunConfig) -> Grid:
    """One line per task: the score of every model, the best teacher, and the difference from it."""
    models = _models(rows, config)
    index = {(row.protocol, row.dataset, row.model): row for row in rows}
    keys = dict.fromkeys([*((t.kind, t.label) for t in config.evaluation.tasks.values()),
                          *((row.protocol, row.dataset) for row in rows)])  # fmt: skip
    lines = []
    for protocol, dataset in keys:
        found = {model: index[protocol, dataset, model] for model in models if (protocol, dataset, model) in index}
        lines.append(_line(f"{NAMES[protocol]}: {dataset}", models, found))
    return Grid(["Task", "Metric", *models, "Best teacher", DELTA], lines)


def tasks_header(runs: Iterable[str]) -> list[str]:
    """Titles of the columns of `compare_tasks`."""
    return ["Task", "Data set", "Metric", *runs, "Best"]


def compare_tasks(runs: Mapping[str, Sequence[ResultRow]]) -> tuple[tuple[str, ...], ...]:
    """The students of several runs: one line per task with task, data set, metric, a score per run, the best runs."""
    students = {run: {(r.protocol, r.dataset): r for r in divide(rows).tasks if r.role == "student"}
                for run, rows in runs.items()}  # fmt: skip
    lines = []
    for key in dict.fromkeys(key for found in students.values() for key in found):
        rows = {run: found[key] for run, found in students.items() if key in found}
        metric = next(iter(rows.values())).metric
        best = _best(rows)
        reach = [run for run, row in rows.items() if best is not None and _reaches(row, rows[best])]
        scores = [_spread(rows[run]) if run in rows else "not evaluated" for run in runs]
        lines.append((*key, metric, *scores, ", ".join(reach) if len(rows) > 1 else ""))
    return tuple(lines)


# ---------------------------------------------------------------- lines


def _line(title: str, models: Sequence[str], rows: Mapping[str, ResultRow]) -> list[Cell]:
    sizes = [row.n_test for row in rows.values() if row.n_test]
    first = Cell(title, f"{sizes[0]:,} test images" if sizes else "")
    if not rows:
        return [first, Cell(DASH), *(Cell(DASH, "not evaluated", "missing") for _ in models), Cell(DASH), Cell(DASH)]
    metric = next(iter(rows.values())).metric
    top = _best(rows)
    cells = [_cell(rows.get(model), top is not None and model == top) for model in models]
    teacher = _best({model: row for model, row in rows.items() if row.role == "teacher"})
    student = next((row for row in rows.values() if row.role == "student"), None)
    delta = Cell(DASH, "", "missing")
    if teacher is not None and student is not None and student.score is not None:
        difference = student.score - (rows[teacher].score or 0.0)
        tone = "good" if not better(metric, rows[teacher].score or 0.0, student.score) else "bad"
        text = f"{difference:+.3f} m" if metric == "rmse" else f"{100 * difference:+.1f}"
        delta = Cell(text.replace("-", MINUS), "", tone)
    return [first, Cell(METRICS[metric]), *cells, Cell(teacher or DASH), delta]


def _cell(row: ResultRow | None, best: bool) -> Cell:
    if row is None:
        return Cell(DASH, "", "missing")
    if row.score is None:
        return Cell("failed", "", "missing")
    low, high = (format_score(row.metric, end).rpartition(" ")[0] for end in (row.ci_low, row.ci_high))
    return Cell(format_score(row.metric, row.score), f"{low}{DASH}{high}", "best" if best else "")


def _spread(row: ResultRow) -> str:
    if row.score is None:
        return "failed"
    low, high = (format_score(row.metric, end).rpartition(" ")[0] for end in (row.ci_low, row.ci_high))
    return f"{format_score(row.metric, row.score)} ({low} to {high})"


def _best(rows: Mapping[str, ResultRow]) -> str | None:
    """The key of the best measured row, the first one among equals."""
    top: str | None = None
    for name, row in rows.items():
        if row.score is not None and (top is None or better(row.metric, row.score, rows[top].score or 0.0)):
            top = name
    return top


def _reaches(row: ResultRow, best: ResultRow) -> bool:
    """Whether the interval of a row reaches the best score."""
    if row.ci_low is None or row.ci_high is None or best.score is None:
        return False
    return row.ci_low <= best.score if row.metric in LOWER else row.ci_high >= best.score


def _models(rows: Sequence[ResultRow], config: RunConfig) -> list[str]:
    """Student, teachers in the order of the config, random student."""
    order = {"student": 0, "teacher": 1, "random": 2}
    found = {row.model: order[row.role] for row in rows} | {teacher.name: 1 for teacher in config.teachers}
    teachers = [teacher.name for teacher in config.teachers]
    names = dict.fromkeys(["student", *teachers, *found])
    return sorted(names, key=lambda name: found.get(name, 0))


def _gaps(rows: Sequence[ResultRow], config: RunConfig) -> list[ResultRow]:
    """Failed rows, and for what the config asks for and nobody measured a row that says so."""
    gaps = [row for row in rows if row.error is not None]
    there = {(row.protocol, row.dataset, row.model) for row in rows}
    for task in config.evaluation.tasks.values():
        for name, role in expected_models(task, config):
            if (task.kind, task.label, name) not in there:
                gaps.append(ResultRow(model=name, role=role, dataset=task.label, protocol=task.kind,
                                      metric=task.metric, error="not evaluated"))  # fmt: skip
    return gaps


def expected_models(task: TaskConfig, config: RunConfig) -> Iterable[tuple[str, Role]]:
    """Name and role of every model that has a result of `task`."""
    yield "student", "student"
    if task.kind == "zeroshot":
        yield task.teacher, "teacher"
        return
    if config.evaluation.random_student:
        yield "random student", "random"
    for teacher in config.teachers:
        yield teacher.name, "teacher"


def _refuse_doubles(rows: Sequence[ResultRow]) -> None:
    keys = [(row.protocol, row.dataset, row.model) for row in rows]
    for protocol, dataset, model in keys:
        if keys.count((protocol, dataset, model)) > 1:
            raise UnicError(f"two {protocol} results of {model} on {dataset}; evaluate again")
