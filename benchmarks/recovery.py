"""From kill -9 to the first new step: a worker of a running distillation dies on this machine."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import psutil
from mlflow import MlflowClient

from unic_core.config import load_config
from unic_core.data.prepare import prepare_dataset
from unic_core.history import Record
from unic_core.provenance import versions
from workflows.ray_train import run_distillation

INTERVAL = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=3)
    options = parser.parse_args()
    steps = 150 * (options.kills + 1)
    settings = [f"training.steps={steps}", f"training.checkpoint_every={INTERVAL}", "training.log_every=1"]
    config = load_config("smoke", settings)
    seen: list[int] = []
    times: list[float] = []
    killed_at: float | None = None

    def emit(step: int, _: Record) -> None:
        nonlocal killed_at
        now = time.monotonic()
        seen.append(step)
        if killed_at is not None and now - killed_at > 1:  # what comes sooner was on its way
            times.append(now - killed_at)
            killed_at = None
        if killed_at is None and len(times) < options.kills and step >= 100 * (len(times) + 1):
            killed_at = now
            _kill_workers()

    with tempfile.TemporaryDirectory() as directory:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{directory}/mlflow.db"
        run = MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).create_run("0").info.run_id
        datasets = {"digits": prepare_dataset(config.datasets[0], directory)}
        run_distillation(config, datasets, str(Path(directory) / "run"), run, emit, str)
    print(f"kill -9 of the worker, {len(times)} times; a checkpoint every {INTERVAL} steps")
    print(f"  training again after {statistics.median(times):.1f} s (median), {max(times):.1f} s at most")
    repeated = (len(seen) - len(set(seen))) / len(times)
    print(f"  steps done again per kill: {repeated:.0f}")
    record = {"seconds": times, "repeated_per_kill": repeated, "cores": os.cpu_count(), "versions": versions()}
    print(json.dumps({"benchmark": "recovery", **record}))


def _kill_workers() -> None:
    for process in psutil.Process().children(recursive=True):
        if "RayTrainWorker" in " ".join(process.cmdline()):
            process.kill()


if __name__ == "__main__":
    main()
