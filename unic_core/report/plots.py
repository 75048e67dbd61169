"""The pictures of a report, as PNG. Matplotlib's Agg canvas, no global state; colors by Okabe and Ito."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import MaxNLocator

from unic_core.report.cells import signed
from unic_core.report.duels import against_best
from unic_core.report.summary import Dataset, Model, Summary, Table

PICTURES: dict[str, tuple[str, str]] = {
    "relative.png": (
        "Relative to the best teacher",
        "Student minus the best teacher of each data set: linear probe top-1, in percentage points, with the 95 % "
        "interval of the difference. Gray: it may be chance.",
    ),
    "radar.png": (
        "Profile",
        "Linear probe top-1 as a share of the best model on each data set; the outer ring is the best one. "
        "A gap in a line is a missing result. The random student is left out.",
    ),
    "accuracy.png": (
        "All models",
        "Linear probe top-1 with its 95 % interval. Data sets without a point for a model have no result of it.",
    ),
    "training.png": ("Distillation loss", "Mean loss per image against each teacher, and what is minimized."),
    "knn.png": ("During training", "Nearest neighbors on the student's features after so many steps, top-1."),
}

_WIDTH = 5.6  # inches
_KNN = "knn/top1_k"  # what the scores during training are called in the history
_STUDENT, _RANDOM = "#0072B2", "#8A94A0"
_TEACHERS = ("#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F5F00")
_MARKERS = ("D", "s", "^", "v", "P", "X")
_BELOW, _EVEN, _INK, _SOFT, _LINE = "#D55E00", "#A9B3BE", "#1C2430", "#5D6877", "#E3E8EE"

_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "text.color": _INK,
    "xtick.color": _SOFT,
    "ytick.color": _INK,
    "xtick.bottom": False,
    "ytick.left": False,
    "legend.frameon": False,
    "text.parse_math": False,  # a $ in a name is a $
}


def draw(summary: Summary, history: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """The pictures that the results allow, by file name: a radar needs three data sets, a curve needs a history."""
    table = summary.tables[0]
    with mpl.rc_context(_STYLE):
        pngs = {
            "relative.png": _relative(table, summary.student),
            "accuracy.png": _accuracy(table),
            "radar.png": _radar(table),
            "training.png": _training(history, [m for m in table.models if m.role == "teacher"]),
            "knn.png": _in_training(history),
        }
    return {name: _png(figure) for name, figure in pngs.items() if figure is not None}


def draw_table(table: Table) -> dict[str, bytes]:
    """The pictures of a table without a student that stands out: accuracies, and a radar where there are three sets."""
    with mpl.rc_context(_STYLE):
        found = {"accuracy.png": _accuracy(table), "radar.png": _radar(table)}
        return {name: _png(figure) for name, figure in found.items() if figure is not None}


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def _look(models: Sequence[Model]) -> dict[Model, tuple[str, str]]:
    """Color and marker of every model."""
    look = {}
    others = 0
    for model in models:
        if model.role == "random":
            look[model] = (_RANDOM, "x")
        elif model.role == "student" and not look:
            look[model] = (_STUDENT, "o")
        else:
            look[model] = (_TEACHERS[others % len(_TEACHERS)], _MARKERS[others % len(_MARKERS)])
            others += 1
    return look


def _canvas(lines: float) -> tuple[Figure, Axes]:
    """A figure for so many horizontal lines of data."""
    figure = Figure(figsize=(_WIDTH, 1.1 + 0.42 * max(lines, 2)), layout="constrained")
    return figure, figure.subplots()


def _relative(table: Table, student: Model) -> Figure | None:
    """Bars of the differences with their intervals, the largest on top."""
    known = sorted(against_best(table, student).items(), key=lambda item: item[1].value)
    if not known:
        return None
    figure, axes = _canvas(len(known))
    colors = {"better": _STUDENT, "even": _EVEN, "worse": _BELOW}
    values = [100 * found.value for _, found in known]
    ends = [(100 * found.low, 100 * found.high) for _, found in known]
    spread = [
        [max(0.0, v - low) for v, (low, _) in zip(values, ends, strict=True)],
        [max(0.0, high - v) for v, (_, high) in zip(values, ends, strict=True)],
    ]
    shades = [colors[found.verdict] for _, found in known]
    whiskers = {"ecolor": _INK, "elinewidth": 1.2}
    axes.barh(range(len(known)), values, height=0.62, color=shades, xerr=spread, error_kw=whiskers)
    axes.axvline(0, color=_INK, linewidth=1)
    low, high = min(0.0, *(low for low, _ in ends)), max(0.0, *(high for _, high in ends))
    room = max(high - low, 1.0)
    for place, (value, (left, right)) in enumerate(zip(values, ends, strict=True)):
        end, side = (right + 0.02 * room, "left") if value >= 0 else (left - 0.02 * room, "right")
        axes.text(end, place, signed(value), ha=side, va="center", fontsize=9)
    axes.set_xlim(low - (0.15 if min(values) < 0 else 0.03) * room, high + (0.15 if max(values) >= 0 else 0.03) * room)
    names = []
    for dataset, _ in known:
        best, (over, of) = table.best_teacher(dataset), table.teachers_measured(dataset)
        among = f" of {over} measured" if over < of else ""
        names.append(f"{dataset.name}\n(best{among}: {best.name if best else ''})")
    axes.set_yticks(range(len(known)), names, fontsize=9)
    spare = max(0.0, (2 - len(known)) / 2)  # a single bar is no thicker than others
    axes.set_ylim(-0.6 - spare, len(known) - 0.4 + spare)
    axes.set_xlabel("points")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(visible=False, axis="y")
    return figure


def _accuracy(table: Table) -> Figure | None:
    """One line per data set, one point with its interval per model."""
    datasets = [d for d in table.datasets if any(table.top1(m, d) is not None for m in table.models)]
    if not datasets:
        return None
    figure, axes = _canvas(len(datasets) * 1.3)
    lanes = np.linspace(-0.3, 0.3, len(table.models))
    for (model, (color, marker)), lane in zip(_look(table.models).items(), lanes, strict=True):
        places, points, below, above = [], [], [], []
        for place, dataset in enumerate(datasets):
            row = table.row(model, dataset)
            if row is None or row.top1 is None or row.ci_low is None or row.ci_high is None:
                continue
            places.append(place + lane)
            points.append(100 * row.top1)
            below.append(max(0.0, 100 * (row.top1 - row.ci_low)))
            above.append(max(0.0, 100 * (row.ci_high - row.top1)))
        axes.errorbar(
            points,
            places,
            xerr=[below, above],
            fmt=marker,
            color=color,
            markersize=7 if model == table.models[0] else 5.5,
            elinewidth=1.6,
            label=model.name,
        )
    for place in range(1, len(datasets)):
        axes.axhline(place - 0.5, color=_LINE, linewidth=0.8)
    axes.set_yticks(range(len(datasets)), [d.name for d in datasets])
    axes.set_ylim(len(datasets) - 0.5, -0.5)
    axes.set_xlabel("top-1, %")
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside upper center", ncols=min(4, len(table.models)), handletextpad=0.4)
    return figure


def _radar(table: Table) -> Figure | None:
    """Shares of the best model; a missing result leaves a gap."""
    models = [model for model in table.models if model.role != "random"]  # it would shrink the rest to a thin ring
    best = {d: max((table.top1(m, d) or 0.0 for m in models), default=0.0) for d in table.datasets}
    datasets = [d for d in table.datasets if best[d] > 0]
    if len(datasets) < 3:
        return None
    shares = {model: [_share(table, model, d, best[d]) for d in datasets] for model in models}
    lowest = min(v for values in shares.values() for v in values if not math.isnan(v))
    inner = max(0.0, math.floor(lowest / 10) * 10 - 10)
    figure = Figure(figsize=(_WIDTH, 5.2), layout="constrained")
    axes = cast(PolarAxes, figure.add_subplot(projection="polar"))
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    angles = np.linspace(0, 2 * np.pi, len(datasets), endpoint=False)
    for model, (color, marker) in _look(models).items():
        values = shares[model]
        closed = [*values, values[0]]
        student = model == models[0]
        axes.plot(
            [*angles, angles[0]],
            closed,
            color=color,
            marker=marker,
            markersize=5,
            linewidth=2.4 if student else 1.4,
            zorder=3 if student else 2,
            label=model.name,
        )
        if student and not any(math.isnan(v) for v in values):
            axes.fill(angles, values, color=color, alpha=0.1)
    axes.set_ylim(inner, 102)
    rings = [r for r in range(0, 101, 10) if r > inner][:: 1 if 100 - inner <= 50 else 2]
    axes.set_yticks(rings, [f"{r} %" for r in rings], fontsize=7.5, color=_SOFT)
    axes.set_rlabel_position(180 / len(datasets))  # between the first two spokes
    for label in axes.get_yticklabels():
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1})
    axes.set_xticks(angles, [f"{d.name}\n{100 * best[d]:.1f}" for d in datasets], fontsize=9)
    for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
        side = math.sin(angle)
        label.set_horizontalalignment("center" if abs(side) < 0.2 else "left" if side > 0 else "right")
    axes.spines["polar"].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(4, len(models)))
    return figure


def _share(table: Table, model: Model, dataset: Dataset, best: float) -> float:
    top1 = table.top1(model, dataset)
    return math.nan if top1 is None else 100 * top1 / best


def _training(history: Sequence[Mapping[str, Any]], teachers: Sequence[Model]) -> Figure | None:
    """The loss that is minimized, and the loss against each teacher."""
    figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    curves = [("loss", "loss", "#1C2430", 2.0)]
    curves += [(f"loss/{m.name}", m.name, color, 1.3) for m, (color, _) in _look(teachers).items()]
    for key, label, color, width in curves:
        points = [(record["step"], record[key]) for record in history if key in record]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, linewidth=width, label=label)
    if not axes.lines:
        return None
    axes.set_xlabel("step")
    axes.set_xlim(left=0)
    axes.tick_params(axis="y", labelcolor=_SOFT)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.legend(ncols=min(3, len(axes.lines)))
    return figure


def _in_training(history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """The kNN scores that the run took while it trained, one line per k."""
    found = {name for record in history for name in record if name.startswith(_KNN)}
    names = sorted(found, key=lambda name: int(name.removeprefix(_KNN)))
    if not names:
        return None
    figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, color in zip(names, itertools.cycle((_STUDENT, *_TEACHERS))):
        points = [(record["step"], 100 * record[name]) for record in history if name in record]
        label = f"k = {name.removeprefix(_KNN)}"
        axes.plot(*zip(*points, strict=True), color=color, linewidth=1.5, marker="o", markersize=3, label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("top-1, %")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    figure.legend(loc="outside upper center", ncols=min(4, len(names)))
    return figure
