"""Tables and progress as people without a terminal see them."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unic_core.evals.results import ResultRow
from workflows import console
from workflows.console import Lines, describe, duration, plain_table
from workflows.doctor import Check


def test_table_is_aligned_and_complete() -> None:
    text = plain_table(("data set", "top1"), [("digits", 0.98765), ("a-rather-long-name", 0.5)])
    assert text.splitlines() == [
        "data set              top1",
        "digits              0.9877",
        "a-rather-long-name     0.5",
    ]


@given(st.lists(st.tuples(st.text("ab x", max_size=9), st.integers(0, 10**9)), max_size=6))
def test_no_cell_is_cut_off(rows: list[tuple[str, int]]) -> None:
    lines = plain_table(("name", "n"), rows).splitlines()
    assert len(lines) == len(rows) + 1
    for line, (name, number) in zip(lines[1:], rows, strict=True):
        assert line.startswith(name)
        assert line.endswith(str(number))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599.9, "1 h 00 min"), (7860, "2 h 11 min")],
)
def test_durations_read_naturally(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_progress_says_throughput_and_time_left() -> None:
    assert describe(1200, 6000, "images", 400.0) == "1,200 of 6,000 images, 400 images/s, 12 s left"
    assert describe(1200, None, "images", 400.0) == "1,200 images, 400 images/s"
    assert describe(6000, 6000, "images", 400.0) == "6,000 of 6,000 images, 400 images/s"
    assert describe(0, 10, "images", 0.0) == "0 of 10 images"


def drive(reports: list[tuple[float, str, int, int | None]]) -> list[str]:
    now, lines = [0.0], []
    progress = Lines("images", emit=lines.append, every_s=10, clock=lambda: now[0])
    for when, what, done, total in reports:
        now[0] = when
        progress(what, done, total)
    return lines


def test_lines_come_at_intervals_and_at_the_end() -> None:
    lines = drive([(float(second), "mnist", second * 5, 100) for second in range(21)])
    assert lines == [
        "mnist: 50 of 100 images, 5 images/s, 10 s left",
        "mnist: 100 of 100 images, 5 images/s",
    ]


def test_each_part_has_its_own_clock() -> None:
    lines = drive([(0, "a", 0, 100), (100, "a", 100, 100), (150, "b", 0, 30), (160, "b", 20, 30)])
    assert lines == ["a: 100 of 100 images, 1 images/s", "b: 20 of 30 images, 2 images/s, 5 s left"]


def test_what_was_done_before_a_restart_does_not_count_as_speed() -> None:
    assert drive([(0, "distill", 500, 1000), (10, "distill", 520, 1000)]) == [
        "distill: 520 of 1,000 images, 2 images/s, 4 min 00 s left"
    ]


def test_every_line_of_a_message_names_its_step(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        console.show_logs(prefix="[distill] ", err=False)
        logging.getLogger("unic_core.train").info("two\nlines")
        logging.getLogger("workflows.steps").warning("careful")
        logging.getLogger("elsewhere").info("chatter")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert capsys.readouterr().out.splitlines() == ["[distill] two", "[distill] lines", "[distill] warning: careful"]


def test_exit_code_of_the_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    fine, odd, bad = Check("a", "ok", "x"), Check("b", "warning", "y", "do"), Check("c", "broken", "z", "mend")
    assert console.show_checks([fine, odd]) == 0
    assert console.show_checks([fine, bad]) == 2
    assert "mend" in capsys.readouterr().out


def test_missing_results_are_named_and_change_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    measured = ResultRow(
        model="student", role="student", dataset="digits", protocol="knn",
        top1=0.912, ci_low=0.9, ci_high=0.92, mean_class_accuracy=0.91,
    )  # fmt: skip
    failed = ResultRow(model="lite0", role="teacher", dataset="digits", protocol="knn", error="out of memory")
    assert console.show_rows([measured]) == 0
    assert console.show_rows([measured, failed]) == 1
    shown = capsys.readouterr()
    assert "91.2%" in shown.out
    assert "lite0" not in shown.out
    assert shown.err == "missing: lite0 on digits (knn): out of memory\n"


def test_training_shows_progress_and_now_and_then_knn(caplog: pytest.LogCaptureFixture) -> None:
    shown: list[tuple[object, ...]] = []
    emit = console.training_progress(lambda *values: shown.append(values))
    emit(5, {"progress": 0.25, "loss": 0.5, "images_per_s": 12.0})
    with caplog.at_level(logging.INFO, "workflows"):
        emit(5, {"knn/top1_k10": 0.5, "knn/top1_k20": 0.625})
    assert shown == [("training", 5, 20, "loss 0.5000, 12 images/s")]
    assert "step 5: kNN top-1 k10 50.0 %, k20 62.5 %" in caplog.text
