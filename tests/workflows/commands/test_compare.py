"""`unic compare` on runs that lie in directories."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from unic_core.errors import UnicError
from unic_core.evals.results import Group, ResultRow, dump_rows
from workflows.cli import unic


def row(dataset: str, top1: float | None, group: Group = "transfer") -> ResultRow:
    values = {} if top1 is None else {"top1": top1, "ci_low": top1 - 0.02, "ci_high": top1 + 0.02}
    values |= {} if top1 is None else {"mean_class_accuracy": top1}
    error = "out of memory" if top1 is None else None
    return ResultRow(
        model="student", role="student", dataset=dataset, group=group, protocol="logreg", error=error, **values
    )


def write(run: Path, *rows: ResultRow) -> str:
    teacher = row("digits", 0.95).model_copy(update={"model": "lite0", "role": "teacher"})
    (run / "rows").mkdir(parents=True)
    (run / "rows" / "all.json").write_text(dump_rows([*rows, teacher]))
    return str(run)


def test_students_side_by_side(tmp_path: Path) -> None:
    a = write(tmp_path / "a", row("digits", 0.80), row("cars", 0.5), row("blur", 0.3, "shift"), row("pets", 0.7))
    b = write(tmp_path / "b", row("digits", 0.81), row("cars", 0.6), row("blur", 0.2, "shift"), row("pets", None))
    result = CliRunner().invoke(unic, ["compare", a, b])
    assert result.exit_code == 0, result.output
    lines = {line.split("  ")[0]: " ".join(line.split()) for line in result.output.splitlines()}
    assert lines["digits"] == "digits logreg 80.0 (78.0 to 82.0) 81.0 (79.0 to 83.0) a, b"
    assert lines["cars"] == "cars logreg 50.0 (48.0 to 52.0) 60.0 (58.0 to 62.0) b"
    assert lines["pets"] == "pets logreg 70.0 (68.0 to 72.0) failed"
    assert lines["mean of 2"] == "mean of 2 logreg 65.0 70.5"  # without pets, which b lacks, and the shift set


def test_what_can_not_be_compared_is_refused(tmp_path: Path) -> None:
    a = write(tmp_path / "a", row("digits", 0.8))
    empty = write(tmp_path / "empty")
    for runs, sentence in (([a], "at least two runs"), ([a, a], "named twice"), ([a, empty], "run empty has no")):
        with pytest.raises(UnicError, match=sentence):
            CliRunner().invoke(unic, ["compare", *runs], standalone_mode=False, catch_exceptions=False)
