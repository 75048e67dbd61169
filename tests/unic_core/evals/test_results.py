"""A row survives its file, and says nothing that it did not measure."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from unic_core.errors import UnicError
from unic_core.evals.results import ResultRow, dump_rows, load_rows

MEASURED = {"top1": 0.75, "ci_low": 0.7, "ci_high": 0.8, "mean_class_accuracy": 0.74}
KEYS = {"model": "student", "role": "student", "dataset": "digits", "protocol": "logreg"}


def test_json_round_trip() -> None:
    rows = [
        ResultRow(**KEYS, **MEASURED, hyper={"C": 1e-5}, n_train=10, n_test=5, sha256="ab", versions={"torch": "2"}),
        ResultRow(**{**KEYS, "protocol": "knn", "group": "shift"}, error='no "cls" tokens\nat all'),
    ]
    assert load_rows(dump_rows(rows), "rows.json") == rows
    assert load_rows(dump_rows([]), "rows.json") == []


def test_rows_are_frozen_and_strict_about_keys() -> None:
    row = ResultRow(**KEYS, **MEASURED)
    with pytest.raises(ValidationError):
        row.__setattr__("top1", 1.0)
    with pytest.raises(ValidationError, match="extra"):
        ResultRow.model_validate({**KEYS, **MEASURED, "top5": 0.9})


@pytest.mark.parametrize(
    "values",
    [{}, {"top1": 0.5}, {**MEASURED, "top1": 75.0}, {**MEASURED, "error": "failed"}, {**MEASURED, "role": "friend"}],
)
def test_half_measured_rows_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ResultRow.model_validate(KEYS | values)


@pytest.mark.parametrize("text", ["", "{}}", "3", '[{"model": "x"}]', "[1]"])
def test_unreadable_files_are_named(text: str) -> None:
    with pytest.raises(UnicError, match=r"rows/digits\.json .*evaluate again"):
        load_rows(text, "rows/digits.json")


def test_rows_of_tasks_carry_their_own_metric() -> None:
    keys = {**KEYS, "protocol": "depth", "metric": "rmse"}
    row = ResultRow(**keys, value=1.25, ci_low=1.1, ci_high=1.4, details={"abs_rel": 0.2})
    assert row.score == 1.25
    assert load_rows(dump_rows([row]), "rows.json") == [row]
    assert ResultRow(**KEYS, **MEASURED).score == MEASURED["top1"]
    assert ResultRow(**keys, error="broken").score is None


@pytest.mark.parametrize(
    "values",
    [
        {"metric": "miou", "value": 1.2, "ci_low": 0.1, "ci_high": 0.2},
        {"metric": "miou", "value": 0.2, "ci_low": 0.1, "ci_high": 1.2},
        {"metric": "rmse", "value": 0.2},
        {"metric": "rmse", "value": -0.2, "ci_low": 0.1, "ci_high": 0.2},
        {"metric": "rmse", "error": "x", "value": 0.2},
    ],
)
def test_scores_out_of_range_or_without_interval_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ResultRow.model_validate({**KEYS, "protocol": "depth", **values})


def test_rows_of_earlier_versions_are_read() -> None:
    old = (
        '[{"model":"s","role":"student","dataset":"d","group":"transfer","protocol":"knn","top1":0.5,"ci_low":0.4,'
        '"ci_high":0.6,"mean_class_accuracy":0.5,"n_train":1,"n_test":2,"hyper":{},"seconds":0.1,"sha256":"",'
        '"dataset_fingerprint":"","versions":{},"error":null}]'
    )
    (row,) = load_rows(old, "rows.json")
    assert (row.metric, row.score, row.details) == ("top1", 0.5, {})
