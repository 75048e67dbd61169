"""The real pipeline under the local runner, with what goes wrong in practice. Without servers; minutes in all."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from unic_core.errors import UnicError
from workflows.local_pipeline import run_pipeline
from workflows.request import PipelineRequest, read_request

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHORT = ("evaluation.random_student=false", "evaluation.c_values=[1.0]", "evaluation.knn_k=[10]")


@pytest.fixture(autouse=True)
def laptop(tmp_path: Path, clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


def request_for(root: Path, name: str, *overrides: str, **changes: Any) -> PipelineRequest:
    local = {"recipe": "smoke", "run_name": name, "storage_root": str(root), "distill_launcher": "local"}
    return read_request(local | {"recipe_overrides": [*SHORT, *overrides]} | changes)


def said(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


def test_a_failing_data_set_is_a_row_and_a_second_run_does_only_what_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="workflows")
    for split in ("train", "test"):  # a classifier needs two classes, and this has one
        place = tmp_path / "images" / split / "only"
        place.mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (16, 16), (40 * index, 0, 0)).save(place / f"{index}.png")
    both = (
        "datasets=[{name: digits, source: 'sklearn:digits', license: CC BY 4.0},"
        f" {{name: single, source: 'folder:{tmp_path}/images', license: MIT}}]",
        "evaluation.probes=[{dataset: digits}, {dataset: single}]",
    )
    run_pipeline(request_for(tmp_path, "branch", *both))
    run = tmp_path / "runs" / "branch"
    rows = json.loads((run / "report/rows.json").read_text())
    assert {row["dataset"] for row in rows if row["error"] is None} == {"digits"}
    assert {row["dataset"] for row in rows if row["error"]} == {"single"}
    assert "single" in (run / "report/report.md").read_text()
    assert "[report] " in said(caplog)
    assert "missing: student on single" in said(caplog)
    weights = (run / "student/model.safetensors").stat().st_mtime_ns

    caplog.clear()
    with pytest.raises(UnicError, match=r"^promote: 2 result\(s\) are missing: student on single, lite0 on "):
        run_pipeline(request_for(tmp_path, "branch", *both, fail_on_missing=True))
    assert f"[distill] the student is there already: {run}/student" in said(caplog)
    assert "[evaluate digits] lite0: known from an earlier run" in said(caplog)
    assert (run / "student/model.safetensors").stat().st_mtime_ns == weights


def test_a_failing_prepare_is_one_sentence(tmp_path: Path) -> None:
    images = f"datasets=[{{name: digits, source: 'folder:{tmp_path}/none', license: MIT}}]"
    with pytest.raises(UnicError, match=r"^prepare: .*none.* \(the whole log: "):
        run_pipeline(request_for(tmp_path, "prepare", images))
    assert not (tmp_path / "runs").exists()


def test_a_run_that_was_cancelled_in_distill_continues(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="workflows")
    request = request_for(tmp_path, "cancelled", "training.steps=300", "training.checkpoint_every=10")
    script = (
        "import sys; from workflows.local_pipeline import run_pipeline; from workflows.request import PipelineRequest;"
        "run_pipeline(PipelineRequest.model_validate_json(sys.argv[1]))"
    )
    checkpoints = tmp_path / "runs/cancelled/checkpoints"
    with subprocess.Popen([sys.executable, "-c", script, request.model_dump_json()], stderr=subprocess.PIPE) as runner:
        while not list(checkpoints.glob("*/MANIFEST.json")):
            assert runner.poll() is None
            time.sleep(0.1)
        started = psutil.Process(runner.pid).children(recursive=True)
        runner.send_signal(signal.SIGINT)
        runner.communicate(timeout=60)
    assert runner.returncode != 0
    assert len(started) > 3  # kfp, its step, Ray's servers and worker
    _, alive = psutil.wait_procs(started, timeout=20)
    assert not alive
    assert not (tmp_path / "runs/cancelled/student").exists()

    run_pipeline(request)
    assert "continuing at step" in said(caplog)
    assert (tmp_path / "runs/cancelled/report/index.html").exists()
