"""What logging the metrics of a step costs training: the spool against MLflow's own calls, on a real server."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
from mlflow import MlflowClient

from unic_core.provenance import versions
from workflows import stack, tracking

METRICS = {f"loss/teacher{i}": 0.5 for i in range(10)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        servers = stack.start(Path(directory) / "stack")
        try:
            mlflow.set_tracking_uri(servers.mlflow.endpoint)
            measured = measure(servers.mlflow.endpoint, Path(directory) / "spool", options.steps)
        finally:
            servers.stop()
    base = measured["MLflow, log_metrics"][0]
    print(f"{len(METRICS)} metrics a step, ms per call over {options.steps} steps")
    print(f"  {'':<34}{'median':>10}{'99 %':>10}{'ratio':>10}")
    for name, (median, high) in measured.items():
        print(f"  {name:<34}{median:10.3f}{high:10.3f}{base / median:9.0f}x")
    record = {name: {"median_ms": median, "p99_ms": high} for name, (median, high) in measured.items()}
    print(json.dumps({"benchmark": "tracking", "calls": record, "versions": versions()}))


def measure(endpoint: str, spool: Path, steps: int) -> dict[str, tuple[float, float]]:
    client = MlflowClient(endpoint)
    runs = [client.create_run("0").info.run_id for _ in range(3)]
    own = tracking.attach(runs[0], spool)
    measured = {"the spool": time_calls(lambda step: own.log_metrics(step, METRICS), steps)}
    with mlflow.start_run(run_id=runs[1]):
        later = lambda step: mlflow.log_metrics(METRICS, step, synchronous=False)  # noqa: E731
        measured["MLflow, synchronous=False"] = time_calls(later, steps)
        mlflow.flush_async_logging()
    with mlflow.start_run(run_id=runs[2]):
        measured["MLflow, log_metrics"] = time_calls(lambda step: mlflow.log_metrics(METRICS, step), steps // 10)
    assert own.flush(120)
    own.close()
    assert len(client.get_metric_history(runs[0], "loss/teacher0")) == steps
    return measured


def time_calls(call: Callable[[int], object], steps: int) -> tuple[float, float]:
    """Median and 99th percentile in ms."""
    times = []
    for step in range(steps):
        begin = time.perf_counter()
        call(step)
        times.append(1000 * (time.perf_counter() - begin))
        time.sleep(0.005)  # a very short training step
    return statistics.median(times), sorted(times)[int(0.99 * (len(times) - 1))]


if __name__ == "__main__":
    main()
