"""`unic compare` on runs that lie in directories and in MLflow."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from unic_core.config import RunConfig, dump_config, load_config
from unic_core.errors import UnicError
from unic_core.evals.difference import pack_hits
from unic_core.evals.results import Group, ResultRow, dump_rows
from workflows import tracking
from workflows.cli import unic


def row(dataset: str, top1: float | None, group: Group = "transfer", fingerprint: str = "") -> ResultRow:
    values = {} if top1 is None else {"top1": top1, "ci_low": top1 - 0.02, "ci_high": top1 + 0.02}
    values |= {} if top1 is None else {"mean_class_accuracy": top1}
    hits = {}
    if fingerprint and top1 is not None:
        found = pack_hits(torch.arange(1000) < round(1000 * top1))
        hits = {"n_test": 1000, "dataset_fingerprint": fingerprint, "test_split": "test", "hits": found}
    error = "out of memory" if top1 is None else None
    return ResultRow(
        model="student", role="student", dataset=dataset, group=group, protocol="logreg", error=error, **values, **hits
    )


def write(run: Path, *rows: ResultRow, config: RunConfig | None = None) -> str:
    teacher = row("digits", 0.95).model_copy(update={"model": "lite0", "role": "teacher"})
    (run / "rows").mkdir(parents=True)
    (run / "rows" / "all.json").write_text(dump_rows([*rows, teacher]))
    if config is not None:
        (run / "config.yaml").write_text(dump_config(config))
    return str(run)


def compare(*arguments: str) -> str:
    result = CliRunner().invoke(unic, ["compare", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def lines_of(output: str) -> dict[str, str]:
    return {line.split("  ")[0]: " ".join(line.split()) for line in output.splitlines()}


def test_students_side_by_side(tmp_path: Path) -> None:
    a = write(tmp_path / "a", row("digits", 0.80), row("cars", 0.5), row("blur", 0.3, "shift"), row("pets", 0.7))
    b = write(tmp_path / "b", row("digits", 0.81), row("cars", 0.6), row("blur", 0.2, "shift"), row("pets", None))
    output = compare(a, b)
    lines = lines_of(output)
    score = "digits logreg 80.0 (78.0 to 82.0) 81.0 (79.0 to 83.0)"
    assert lines["digits"] == f"{score} +1.0 (-1.8 to +3.8) b (even: a)"
    assert lines["cars"].endswith("+10.0 (+7.2 to +12.8) b")
    assert lines["blur"].endswith("-10.0 (-12.8 to -7.2) a")
    assert lines["pets"] == "pets logreg 70.0 (68.0 to 72.0) failed"
    assert lines["mean of 2"] == "mean of 2 logreg 65.0 70.5 +5.5 (+3.5 to +7.5)"  # without pets, and the shift set
    assert "Intervals are not paired" in output


def test_rows_that_know_their_hits_are_paired_and_other_images_are_not_compared(tmp_path: Path) -> None:
    a = write(tmp_path / "a", row("digits", 0.80, fingerprint="f"), row("cars", 0.5, fingerprint="g"))
    b = write(tmp_path / "b", row("digits", 0.81, fingerprint="f"), row("cars", 0.6, fingerprint="h"))
    output = compare(a, b)
    lines = lines_of(output)
    assert lines["digits"].endswith("+1.0 (+0.4 to +1.7) b")  # beyond chance: ten images that only b has right
    assert lines["cars"].endswith("60.0 (58.0 to 62.0) different images")
    assert lines["mean of 1"].startswith("mean of 1 logreg 80.0 81.0 +1.0")
    assert "Intervals are paired" in output
    c = write(tmp_path / "c", row("cars", 0.6, fingerprint="h"))
    assert "No two results are about the same test images." in compare(a, c)


def test_page_and_rows_as_files(tmp_path: Path) -> None:
    config = load_config("smoke")
    other = config.model_copy(update={"name": "other", "seed": 7})
    a = write(tmp_path / "a", *(row(d, 0.5, fingerprint=d) for d in ("digits", "cars", "pets")), config=config)
    b = write(tmp_path / "b", *(row(d, 0.6, fingerprint=d) for d in ("digits", "cars")), config=other)
    c = write(tmp_path / "c", *(row(d, 0.4, fingerprint=d) for d in ("digits", "cars")), config=config)
    files = {kind: tmp_path / "out" / f"x.{kind}" for kind in ("html", "csv", "json")}
    compare(a, b, c, *(part for kind, path in files.items() for part in (f"--{kind}", str(path))))

    page = files["html"].read_text()
    assert "b has the highest mean top-1 over 2 transfer sets, 60.0, beyond the 95 % interval." in page
    assert "b against a: better on 2, even on 0, worse on 0; mean difference +10.0" in page
    assert "c against a: better on 0, even on 0, worse on 2" in page
    assert page.count("data:image/png;base64,") == 2  # accuracies and the radar of three sets
    assert "What differs in the configs" in page
    assert "<th class=''>seed</th><td class=''>22</td><td class=''>7</td>" in page
    assert "<script" not in page

    rows = list(csv.DictReader(files["csv"].read_text().splitlines()))
    assert {r["run"] for r in rows} == {"a", "b", "c"}
    assert len(rows) == 3 + 2 + 2 + 3  # with the teacher of each
    found = json.loads(files["json"].read_text())
    digits = next(r for r in found["results"] if r["dataset"] == "digits")
    assert (found["compared_with"], digits["winner"], digits["even"]) == ("a", "b", [])
    assert digits["differences"]["c"]["verdict"] == "worse"
    assert digits["differences"]["b"]["paired"] is True
    assert ResultRow.model_validate(found["rows"]["a"][0]).top1 == 0.5


def test_runs_of_mlflow_by_their_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_environment: pytest.MonkeyPatch
) -> None:
    clean_environment.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    config = load_config("smoke", ["name=first"])
    parent = tracking.parent_run(config)
    with pytest.raises(UnicError, match=r"has no report/rows\.json; name a parent run, and run `unic report`"):
        CliRunner().invoke(unic, ["compare", parent, "b"], standalone_mode=False, catch_exceptions=False)
    rows = {"rows.json": dump_rows([row("digits", 0.5)]).encode()}
    tracking.attach(parent).log_artifacts({f"report/{name}": data for name, data in rows.items()})
    b = write(tmp_path / "b", row("digits", 0.6))
    assert "+10.0 (+7.2 to +12.8)  b" in compare(f"runs:/{parent}", b)
    with pytest.raises(UnicError, match="MLflow"):
        CliRunner().invoke(unic, ["compare", "0" * 32, b], standalone_mode=False, catch_exceptions=False)


def test_what_can_not_be_compared_is_refused(tmp_path: Path) -> None:
    a = write(tmp_path / "a", row("digits", 0.8))
    empty = write(tmp_path / "empty")
    for runs, sentence in (
        ([a], "at least two runs"),
        ([a, a], "named twice"),
        ([a, f"{a}/"], "named twice"),
        ([a, empty], "run empty has no"),
    ):
        with pytest.raises(UnicError, match=sentence):
            CliRunner().invoke(unic, ["compare", *runs], standalone_mode=False, catch_exceptions=False)
