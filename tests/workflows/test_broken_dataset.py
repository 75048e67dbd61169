"""One data set is broken: the others are measured, everything says so, and a repeat computes only what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from unic_core.config import dump_config, load_config
from unic_core.errors import UnicError
from unic_core.evals.difference import unpack_hits
from unic_core.evals.results import load_rows
from unic_core.export import save_student
from unic_core.storage import open_store
from unic_core.student import Student
from workflows import steps, tracking
from workflows.cli import unic

MODELS = ("student", "random student", "lite0")


def put_images(place: Path) -> None:
    """Two classes that anything tells apart."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 6), ("test", 4)):
        for label, light in (("dark", 20), ("light", 220)):
            for i in range(n):
                path = place / split / label / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.clip(light + rng.normal(0, 9, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(path)


def test_from_the_command_line_to_the_report(tmp_path: Path, clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    clean_environment.chdir(tmp_path)
    images = tmp_path / "images"
    keys = [
        "name=broken",
        "datasets.0.limit={train: 200, test: 100}",
        "evaluation.probes=[{dataset: digits}, {dataset: light}]",
        "evaluation.knn_k=[3]",
    ]
    config = load_config("smoke", keys)
    light = config.datasets[0].model_copy(update={"name": "light", "source": f"folder:{images}", "limit": {}})
    config = config.model_copy(update={"datasets": (*config.datasets, light)})
    path = tmp_path / "broken.yaml"
    path.write_text(dump_config(config))
    root = str(tmp_path / "root")
    run = open_store(steps.run_uri(config, root))
    save_student(Student(config.student), config, run.child("student"), [], license="MIT")
    tracking.log_student(tracking.parent_run(config), Path(run.uri) / "student", config)

    def call(command: str) -> tuple[int, str]:
        result = CliRunner().invoke(unic, [command, str(path), "--root", root], standalone_mode=False)
        assert result.exception is None, result.output
        return int(result.return_value or 0), result.output

    code, output = call("prepare")
    assert code == 1
    assert "digits" in output

    code, output = call("evaluate")
    assert code == 1
    for model in MODELS:
        assert f"missing: {model} on light (logreg): no images at {images}" in output
    digits = [line for line in output.splitlines() if line.startswith("digits")]
    assert len(digits) == 2 * len(MODELS)

    code, output = call("report")
    assert code == 1
    page = run.get("report/report.md").decode()
    assert "no images at" in page.split("## Missing and failed")[1]
    rows = load_rows(run.get("report/rows.json"), "rows.json")
    assert {row.dataset for row in rows if row.error} == {"light"}
    assert "was not promoted: its run has no probe/mean_top1" in output

    put_images(images)  # the user puts it right
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "root" / "cache").rglob("*") if path.is_file()}
    code, output = call("evaluate")
    assert code == 0, output
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "root" / "cache").rglob("*") if path.is_file()}
    assert before.items() <= after.items()  # nothing of digits was computed again
    assert len(after) > len(before)
    assert call("report")[0] == 0
    page = run.get("report/report.md").decode()
    assert "Missing and failed" not in page
    assert "Intervals are paired" in page
    rows = load_rows(run.get("report/rows.json"), "rows.json")
    assert all(unpack_hits(row) is not None for row in rows)
    assert {row.test_split for row in rows} == {"test"}


def test_a_set_that_training_needs_must_be_there(tmp_path: Path) -> None:
    config = load_config("smoke", [f"datasets.0.source=folder:{tmp_path}/nowhere"])
    with pytest.raises(UnicError, match="no images at"):
        steps.prepare(config, str(tmp_path / "root"))
