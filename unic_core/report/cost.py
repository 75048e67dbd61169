"""What the run and its probes cost: parameters, arithmetic, throughput, hours, seconds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from unic_core.config import RunConfig
from unic_core.cost import CostRow
from unic_core.report.cells import DASH, TIMES, Cell, Grid, Section, signed
from unic_core.report.summary import Model, Table

_STUDENT, _TEACHER = "student", "teacher: "


def throughput(history: Sequence[Mapping[str, Any]]) -> float | None:
    """Images per second over all processes: the median over the stretches between two log lines."""
    rates = [record["images_per_s"] for record in history if record.get("images_per_s", 0) > 0]
    return statistics.median(rates) if rates else None


def training_hours(history: Sequence[Mapping[str, Any]], batch: int) -> float | None:
    """Hours of the steps that led to the student: images of each stretch over its rate; starts are not counted."""
    records = [record for record in history if record.get("images_per_s", 0) > 0]
    seconds, step = 0.0, 0
    for record in records:
        seconds += (record["step"] - step) * batch / record["images_per_s"]
        step = record["step"]
    return seconds / 3600 if records else None


def cost_metrics(
    history: Sequence[Mapping[str, Any]], parts: Sequence[CostRow], tables: Sequence[Table], config: RunConfig
) -> dict[str, float]:
    """`cost/images_per_s`, `cost/training_hours`, `cost/student_parameters`, `cost/student_gflops`,
    `cost/step_gflops`, `cost/probe_seconds`; those that are known.
    """
    rate, hours = throughput(history), training_hours(history, config.training.batch)
    metrics = {} if rate is None or hours is None else {"cost/images_per_s": rate, "cost/training_hours": hours}
    for part in parts:
        if part.part == _STUDENT:
            metrics["cost/student_parameters"] = float(part.parameters)
            metrics["cost/student_gflops"] = part.gflops_forward
    if parts:
        metrics["cost/step_gflops"] = parts[-1].gflops_step
    seconds = sum(row.seconds for table in tables for row in table.rows.values())
    return metrics | ({"cost/probe_seconds": seconds} if seconds else {})


def training_facts(history: Sequence[Mapping[str, Any]], config: RunConfig) -> dict[str, str]:
    """Throughput and duration in words; empty without a history."""
    rate, hours = throughput(history), training_hours(history, config.training.batch)
    if rate is None or hours is None:
        return {}
    length = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"
    workers = config.cluster.workers
    return {"Speed": f"{rate:,.0f} images/s", "Duration": f"{length} on {workers} worker{'' if workers == 1 else 's'}"}


def cost_sections(parts: Sequence[CostRow], tables: Sequence[Table]) -> list[Section]:
    """Size of the models, then the time that probes took."""
    return [*_models(parts), *_probes(tables)]


def _models(parts: Sequence[CostRow]) -> list[Section]:
    student = next((part for part in parts if part.part == _STUDENT), None)
    if student is None:
        return []
    shown = [part for part in parts if part.part == _STUDENT or part.part.startswith(_TEACHER)]
    lines = []
    for part in shown:
        share = "" if part is student else f"{part.gflops_forward / student.gflops_forward:.2f} {TIMES} student"
        lines.append(
            [
                Cell(part.part.removeprefix(_TEACHER), "" if part is student else "teacher"),
                Cell(_millions(part.parameters)),
                Cell(_gflops(part.gflops_forward), share),
            ]
        )
    everyone = sum(part.gflops_forward for part in shown if part is not student)
    caption = (
        "Encoders alone, at the resolution of the student's training. All teachers together take "
        f"{_gflops(everyone)} GFLOPs an image, {everyone / student.gflops_forward:.1f} times what the student that "
        f"replaces them takes. A training step costs {_gflops(parts[-1].gflops_step)} GFLOPs an image, projectors "
        "included; they are thrown away afterwards. One multiply-add is two FLOPs."
    )
    return [Section("Cost of the models", Grid(["Model", "Parameters", "GFLOPs an image"], lines), caption)]


def _probes(tables: Sequence[Table]) -> list[Section]:
    """Seconds of every model on every data set, all protocols, and each of them below."""
    models: tuple[Model, ...] = tables[0].models
    lines, sums = [], dict.fromkeys(models, 0.0)
    for dataset in tables[0].datasets:
        cells = []
        for model in models:
            rows = [row for table in tables if (row := table.row(model, dataset)) is not None and row.top1 is not None]
            spent = [row.seconds for row in rows]
            sums[model] += sum(spent)
            cells.append(Cell(_seconds(sum(spent)), " + ".join(map(_seconds, spent))) if rows else Cell(DASH))
        lines.append([Cell(dataset.name), *cells])
    if not any(sums.values()):
        return []
    lines.append([Cell("Sum", "", "mean"), *(Cell(_seconds(total), "", "mean") for total in sums.values())])
    caption = (
        "Seconds of the linear probe + of nearest neighbors: to choose the settings, fit and score. Features are not "
        "counted: they are taken once and kept. Probes that share their training images share one fit, which is "
        "counted in each."
    )
    return [Section("Cost of the probes", Grid(["Data set", *(m.name for m in models)], lines), caption, "results")]


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:,.1f} M" if parameters >= 1e5 else f"{parameters / 1e6:.2g} M"


def _gflops(number: float) -> str:
    return f"{number:,.2f}" if number >= 1 else f"{number:.2g}"


def _seconds(seconds: float) -> str:
    return signed(seconds).removeprefix("+") if seconds >= 0.05 else f"{seconds:.2f}"
