"""`unic run`: nothing is done twice, and a pod is told why it ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


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
