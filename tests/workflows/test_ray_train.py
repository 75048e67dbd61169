"""Real Ray clusters on this machine; each takes some ten seconds to start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from unic_core.checkpoint import list_checkpoints
from unic_core.config import RunConfig, load_config
from unic_core.data.prepare import prepare_dataset
from unic_core.errors import UnicError
from unic_core.history import Record
from unic_core.storage import LocalStore
from workflows.ray_train import run_distillation

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("root")
    return {"digits": prepare_dataset(load_config("smoke").datasets[0], str(root))}


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(autouse=True)
def tracked(tracking_uri: str, tmp_path: Path, clean_environment: pytest.MonkeyPatch) -> str:
    """A run of MLflow for the metrics."""
    clean_environment.setenv("UNIC_SPOOL", str(tmp_path / "spool"))
    clean_environment.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    return str(MlflowClient(tracking_uri).create_run("0").info.run_id)


def run(
    config: RunConfig, datasets: dict[str, str], place: Path, tracked: str
) -> tuple[list[tuple[int, Record]], list[str]]:
    metrics: list[tuple[int, Record]] = []
    lines: list[str] = []
    run_distillation(config, datasets, str(place), tracked, lambda s, r: metrics.append((s, r)), lines.append)
    return metrics, lines


def weights(place: Path) -> dict[str, torch.Tensor]:
    newest = list_checkpoints(LocalStore(str(place)))[-1].key
    return load_file(place / newest / "student.safetensors") | load_file(place / newest / "projectors.safetensors")


def test_two_workers_learn_what_one_learns(digits: dict[str, str], tmp_path: Path, tracked: str) -> None:
    metrics, lines = run(load_config("smoke"), digits, tmp_path / "one", tracked)
    assert [step for step, _ in metrics] == [2, 4, 5, 6, 8, 10, 12]
    assert any("in 1 process(es)" in line for line in lines)
    _, lines = run(load_config("smoke", ["cluster.workers=2"]), digits, tmp_path / "two", tracked)
    assert any("in 2 process(es)" in line for line in lines)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key, value in one.items():
        assert torch.allclose(value, two[key], atol=1e-3), key


def test_a_killed_worker_is_replaced_and_nothing_is_lost(digits: dict[str, str], tmp_path: Path, tracked: str) -> None:
    """kill -9 in mid-training: the run ends with the weights of an undisturbed one."""
    config = load_config("smoke", ["training.steps=60", "training.log_every=1"])
    killed: list[int] = []

    def kill_once(step: int, _: Record) -> None:
        if step >= 7 and not killed:
            workers = [p for p in psutil.process_iter(["name"]) if "RayTrainWorker" in " ".join(_command(p))]
            killed.extend(p.pid for p in workers)
            for process in workers:
                process.kill()

    lines: list[str] = []
    run_distillation(config, digits, str(tmp_path / "killed"), tracked, kill_once, lines.append)
    assert killed
    assert any("continue at the last checkpoint" in line for line in lines)
    assert any("continuing at step" in line for line in lines)
    run(config, digits, tmp_path / "straight", tracked)
    straight, survived = weights(tmp_path / "straight"), weights(tmp_path / "killed")
    assert not [key for key in straight if not torch.equal(straight[key], survived[key])]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_mistake_found_by_a_worker_is_not_retried(digits: dict[str, str], tmp_path: Path, tracked: str) -> None:
    config = load_config("smoke", ["training.batch=100000"])
    with pytest.raises(UnicError, match="fewer than one batch of 100000"):
        run(config, digits, tmp_path, tracked)


def test_ctrl_c_stops_within_seconds_and_leaves_no_process(
    digits: dict[str, str], tmp_path: Path, tracked: str
) -> None:
    script = (
        "from unic_core.config import load_config; from workflows.ray_train import run_distillation\n"
        "config = load_config('smoke', ['training.steps=100000', 'training.checkpoint_every=1000'])\n"
        "def emit(step, record): print(step, flush=True)\n"
        f"run_distillation(config, {digits!r}, {str(tmp_path)!r}, {tracked!r}, emit, str)"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    assert child.stdout.readline()  # training
    family = psutil.Process(child.pid).children(recursive=True)
    begin = time.monotonic()
    child.send_signal(signal.SIGINT)
    assert child.wait(30) in {1, 130, -signal.SIGINT}
    assert time.monotonic() - begin < 20
    _, alive = psutil.wait_procs(family, timeout=10)
    assert [p for p in alive if p.pid != os.getpid()] == []
