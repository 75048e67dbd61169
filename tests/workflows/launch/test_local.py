"""Jobs in the background of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from unic_core.config import load_config
from unic_core.errors import UnicError
from workflows.launch import LaunchConfig
from workflows.launch.local import LocalJobs

LOCAL = LaunchConfig(backend="local")


@pytest.mark.slow
def test_a_job_runs_once_and_its_log_can_be_followed(tmp_path: Path, clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    jobs, root = LocalJobs(LOCAL, tmp_path / "jobs"), str(tmp_path / "root")
    run = load_config("smoke", ["name=quiet", "evaluation.random_student=false", "evaluation.c_values=[1.0]"])
    assert jobs.submit(run, root)
    lines: list[str] = []
    status = jobs.wait("quiet", lines.append, lines.append)
    assert status.phase == "succeeded", lines
    assert any(line.startswith("student: ") for line in lines)
    assert (tmp_path / "root/runs/quiet/report/index.html").exists()
    assert not jobs.submit(run, root)
    with pytest.raises(UnicError, match="there is a job quiet with another config"):
        jobs.submit(load_config("smoke", ["name=quiet", "seed=1"]), root)
    assert jobs.cancel("quiet")
    assert jobs.status("quiet").phase == "absent"
    assert not jobs.cancel("quiet")


def test_a_mistake_is_the_reason_of_the_failure(tmp_path: Path) -> None:
    jobs = LocalJobs(LOCAL, tmp_path / "jobs")
    run = load_config("smoke", ["name=wrong", "teachers.0.weights=no-such-file.pth"])
    assert jobs.submit(run, str(tmp_path / "root"))
    status = jobs.wait("wrong", lambda _: None, lambda _: None)
    assert status.phase == "failed"
    assert status.reasons[0].startswith("there is no weights file no-such-file.pth")


def test_cancel_ends_what_runs(tmp_path: Path) -> None:
    jobs = LocalJobs(LOCAL, tmp_path / "jobs")
    assert jobs.submit(load_config("smoke", ["name=endless", "training.steps=1000000"]), str(tmp_path / "root"))
    assert jobs.status("endless").phase == "running"
    assert jobs.cancel("endless")
    assert jobs.status("endless").phase == "absent"
