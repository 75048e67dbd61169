"""Tasks in the report and in comparisons: directions, gaps, and nothing of them in the probes' numbers."""

from __future__ import annotations

from typing import Any

import pytest

from unic_core.config import RunConfig, load_config
from unic_core.errors import UnicError
from unic_core.evals.results import Metric, Protocol, ResultRow, Role, format_score
from unic_core.report import build_report
from unic_core.report.compare import compare_runs, comparison_page
from unic_core.report.tasks import better, compare_tasks, divide, task_grid, task_metrics

ROLES: dict[str, Role] = {"student": "student", "lite0": "teacher", "lite2": "teacher", "random student": "random"}


def task(protocol: Protocol, dataset: str, model: str, score: float | None, spread: float = 0.01) -> ResultRow:
    metrics: dict[Protocol, Metric] = {"segmentation": "miou", "depth": "rmse", "zeroshot": "top1"}
    metric = metrics[protocol]
    values: dict[str, Any] = {"error": "it is broken"}
    if score is not None:
        values = {"ci_low": score - spread, "ci_high": score + spread, "n_test": 10}
        values |= {"top1": score, "mean_class_accuracy": score} if metric == "top1" else {"value": score}
    return ResultRow(model=model, role=ROLES[model], dataset=dataset, protocol=protocol, metric=metric, **values)


def probe(model: str, top1: float) -> list[ResultRow]:
    values: dict[str, Any] = {
        "top1": top1, "ci_low": top1, "ci_high": top1, "mean_class_accuracy": top1, "n_test": 100,
    }  # fmt: skip
    protocols: tuple[Protocol, ...] = ("logreg", "knn")
    return [ResultRow(model=model, role=ROLES[model], dataset="digits", protocol=p, **values) for p in protocols]


@pytest.fixture
def config() -> RunConfig:
    teachers = "[{name: lite0, model: efficientnet_lite0}, {name: lite2, model: efficientnet_lite2}]"
    return load_config(
        "smoke",
        [
            f"teachers={teachers}",
            "evaluation.segmentation=[{dataset: rooms}]",
            "evaluation.depth=[{dataset: nyu}]",
            "evaluation.zeroshot=[{dataset: digits, teacher: lite0, text: t}]",
        ],
    )


@pytest.fixture
def rows() -> list[ResultRow]:
    scores = {"student": (0.5, 0.4), "lite0": (0.45, 0.5), "lite2": (0.55, 0.6), "random student": (0.1, 1.2)}
    found = [r for m, (miou, rmse) in scores.items()
             for r in (task("segmentation", "rooms", m, miou), task("depth", "nyu", m, rmse))]  # fmt: skip
    return [*found, task("zeroshot", "digits", "student", 0.3), task("zeroshot", "digits", "lite0", None)]


def test_the_best_has_the_largest_iou_and_the_smallest_error(rows: list[ResultRow], config: RunConfig) -> None:
    assert better("miou", 0.6, 0.5)
    assert better("rmse", 0.5, 0.6)
    grid = task_grid(rows, config)
    assert grid.header[2:6] == ["student", "lite0", "lite2", "random student"]
    lines = {line[0].text: line for line in grid.lines}
    rooms, nyu, zero = lines["Segmentation: rooms"], lines["Depth: nyu"], lines["Zero-shot: digits"]
    assert [cell.tone for cell in rooms[2:6]] == ["", "", "best", ""]
    assert [cell.text for cell in rooms[2:]] == ["50.0 %", "45.0 %", "55.0 %", "10.0 %", "lite2", "\N{MINUS SIGN}5.0"]
    assert rooms[-1].tone == "bad"
    assert [cell.tone for cell in nyu[2:6]] == ["best", "", "", ""]
    assert [nyu[-2].text, nyu[-1].text, nyu[-1].tone] == ["lite0", "\N{MINUS SIGN}0.100 m", "good"]
    assert [cell.text for cell in zero[2:]] == ["30.0 %", "failed", "\N{EN DASH}", "\N{EN DASH}", *["\N{EN DASH}"] * 2]


def test_metrics_carry_the_task_and_leave_the_probes_alone(rows: list[ResultRow], config: RunConfig) -> None:
    probes = [row for m, top1 in (("student", 0.9), ("lite0", 0.8)) for row in probe(m, top1)]
    with_tasks, without = build_report([*probes, *rows], config), build_report(probes, config)
    new = {k: v for k, v in with_tasks.metrics.items() if k not in without.metrics or without.metrics[k] != v}
    assert new == {
        "segmentation/rooms/miou": 0.5, "depth/nyu/rmse": 0.4, "zeroshot/digits/top1": 0.3, "tasks/failed": 1.0,
    }  # fmt: skip
    assert with_tasks.metrics["probe/mean_top1"] == 0.9
    assert with_tasks.pngs.keys() == without.pngs.keys()
    for text in (with_tasks.html, with_tasks.markdown):
        assert "Dense and zero-shot tasks" in text
        assert "it is broken" in text
    assert "Segmentation: rooms" in with_tasks.html
    assert with_tasks.csv.count("\n") == 1 + len(probes) + len(rows)


def test_what_was_asked_for_and_not_measured_is_missing(config: RunConfig) -> None:
    assert task_metrics([], config) == {"tasks/failed": 4 + 4 + 2}
    assert "not evaluated" in build_report(probe("student", 0.5), config).markdown
    assert task_metrics([], load_config("smoke")) == {}
    assert "Dense" not in build_report(probe("student", 0.5), load_config("smoke")).markdown


def test_two_rows_of_one_task_are_refused(rows: list[ResultRow], config: RunConfig) -> None:
    with pytest.raises(UnicError, match="two segmentation results of student on rooms"):
        build_report([*probe("student", 0.5), *rows, rows[0]], config)


def test_runs_are_compared_by_task(rows: list[ResultRow]) -> None:
    other = [task("segmentation", "rooms", "student", 0.52, 0.005), task("depth", "nyu", "student", 0.3)]
    runs = {"a": [*probe("student", 0.9), *rows], "b": [*probe("student", 0.8), *other], "c": probe("student", 0.7)}
    lines = {line[:2]: line[2:] for line in compare_tasks(runs)}
    assert lines["segmentation", "rooms"] == (
        "miou", "50.0 % (49.0 to 51.0)", "52.0 % (51.5 to 52.5)", "not evaluated", "b",
    )  # fmt: skip
    assert lines["depth", "nyu"][-1] == "b"  # the smaller error
    assert lines["zeroshot", "digits"][-1] == ""  # one run alone wins nothing
    comparison = compare_runs(runs)
    assert [table.protocol for table in comparison.tables] == ["logreg", "knn"]
    assert comparison.tasks == compare_tasks(runs)
    assert "49.0 to 51.0" in comparison_page(comparison)
    assert compare_tasks({"a": probe("student", 0.9)}) == ()
    close = {"a": [task("depth", "nyu", "student", 0.31)], "b": [task("depth", "nyu", "student", 0.3)]}
    assert compare_tasks(close)[0][-1] == "a, b"


def test_scores_have_units_and_rows_are_told_apart(rows: list[ResultRow]) -> None:
    assert [format_score("rmse", 0.5731), format_score("miou", 0.396), format_score("top1", None)] == [
        "0.573 m", "39.6 %", "failed",
    ]  # fmt: skip
    assert divide([*probe("student", 0.5), *rows]) == (probe("student", 0.5), rows)
