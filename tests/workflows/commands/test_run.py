"""`unic run`: patience with servers that are away, and nothing done twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from unic_core.errors import OutageError, UnicError
from workflows.commands import run as command


def test_a_stage_is_tried_again_while_a_server_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "PAUSE_S", 0.0)
    calls: list[int] = []

    def stage() -> str:
        calls.append(len(calls))
        if len(calls) < 4:
            raise OutageError("S3 at http://s3 cannot be reached; start it")
        return "done"

    assert command._patiently(stage, patience=60) == "done"
    assert len(calls) == 4


def test_patience_ends_and_a_mistake_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "PAUSE_S", 0.01)
    calls: list[type[UnicError]] = []

    def fail(kind: type[UnicError]) -> None:
        calls.append(kind)
        raise kind("no")

    with pytest.raises(OutageError):
        command._patiently(lambda: fail(OutageError), patience=0.05)
    assert len(calls) > 1
    calls.clear()
    with pytest.raises(UnicError):
        command._patiently(lambda: fail(UnicError), patience=60)
    assert len(calls) == 1
    with pytest.raises(OutageError):
        command._patiently(lambda: fail(OutageError), patience=0)
    assert len(calls) == 2


@pytest.mark.slow
def test_a_complete_run_is_left_alone(tmp_path: Path, clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    short = ["name=once", "training.steps=2", "evaluation.random_student=false", "evaluation.c_values=[1.0]"]
    arguments = [sys.executable, "-m", "workflows", "run", "smoke", *short, "--root", str(tmp_path)]
    first = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    weights = tmp_path / "runs/once/student/model.safetensors"
    before = weights.stat().st_mtime_ns
    second = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert "run once is complete, nothing to do" in second.stdout
    assert weights.stat().st_mtime_ns == before


def test_last_words_are_left_where_a_pod_looks_for_them(tmp_path: Path) -> None:
    environment = {"UNIC_TERMINATION_LOG": str(tmp_path / "words"), "PATH": "/usr/bin:/bin"}
    arguments = [sys.executable, "-m", "workflows", "run", "no-such-recipe", "--root", str(tmp_path)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    words = (tmp_path / "words").read_text()
    assert f"error: {words}" in done.stderr
    assert "no-such-recipe" in words
