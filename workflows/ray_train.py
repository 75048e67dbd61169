"""Runs `unic_core.session` in the processes of a Ray Train worker group.

Checkpoints are the session's own (verified, on the run's store), so Ray keeps none: a restarted group simply opens
the run again and continues at the newest valid one.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import torch

from unic_core.config import RunConfig, parse_config
from unic_core.errors import UnicError
from unic_core.history import Record
from unic_core.storage import join
from workflows.mailbox import Mailbox
from workflows.storage import ray_filesystem

log = logging.getLogger(__name__)

# Set before Ray is imported anywhere in this process; pods may override each of them.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # or Ray re-runs `uv run` in every worker
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # or every line appears twice
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}
_RETRY_PAUSE_S = 5.0


def run_distillation(
    config: RunConfig,
    datasets: dict[str, str],
    run: str,
    tracking_run: str,
    emit: Callable[[int, Record], None],
    say: Callable[[str], None],
) -> None:
    """Train the run at the URI `run` on a Ray cluster: the one at RAY_ADDRESS, else one on this machine.

    A worker group that dies is started again up to `cluster.max_failures` times and continues where its
    last checkpoint left off; a mistake of the user (UnicError) is raised at once.

    Args:
        tracking_run: id of the MLflow run that process 0 logs its metrics to.
        emit: called in this process with the newest metrics.
        say: called in this process with lines for people.
    """
    os.environ.update({key: os.environ.get(key, value) for key, value in _ENVIRONMENT.items()})
    import ray
    from ray.train import ControllerError, WorkerGroupError

    with _cluster(config):
        mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
        payload = {
            "config": config.model_dump(mode="json"),
            "datasets": datasets,
            "run": run,
            "tracking_run": tracking_run,
            "mailbox": mailbox,
        }
        attempt = 0
        while True:
            deliver = _Delivery(mailbox, emit, say)
            try:
                with deliver:
                    _outside_main_thread(_trainer(config, run, payload).fit)
            except (WorkerGroupError, ControllerError) as error:
                if deliver.mistake is not None:
                    raise UnicError(deliver.mistake) from None
                attempt += 1
                if attempt > config.cluster.max_failures:
                    reason = str(error).strip().splitlines()[-1]
                    raise UnicError(
                        f"run {config.name} failed {attempt} times, last with: {reason}; "
                        "mend the cause and start it again: it continues at its last checkpoint"
                    ) from error
                say(f"{type(error).__name__}; attempt {attempt + 1} continues at the last checkpoint")
                time.sleep(_RETRY_PAUSE_S)
            else:
                return


def _outside_main_thread(function: Callable[[], object]) -> None:
    """Call `function` and wait. In the main thread Ray would replace the handler of Ctrl-C by one that exits with 1."""
    outcome: Future[object] = Future()

    def call() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=call, name="fit", daemon=True).start()  # a daemon: Ctrl-C does not wait for it
    outcome.result()


@contextmanager
def _cluster(config: RunConfig) -> Iterator[None]:
    """Connect to the cluster at RAY_ADDRESS or start one on this machine for the time of the run."""
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if "RAY_ADDRESS" not in os.environ:
        needed = config.cluster.workers * config.cluster.cpus_per_worker
        options |= {
            "address": "local",
            "num_cpus": max(os.cpu_count() or 1, int(needed) + 1),  # the controller needs a place too
            "include_dashboard": False,
            "object_store_memory": 200 * 2**20,
        }
    ray.init(**options)
    try:
        yield
    finally:
        ray.shutdown()


def _trainer(config: RunConfig, run: str, payload: dict[str, Any]) -> Any:
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    cluster = config.cluster
    filesystem, path = ray_filesystem(join(run, "ray"))
    resources: dict[str, float] = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    return TorchTrainer(
        _worker,
        train_loop_config=payload,
        torch_config=TorchConfig(backend="nccl" if cluster.gpus_per_worker else "gloo", timeout_s=cluster.timeout_s),
        scaling_config=ScalingConfig(
            num_workers=cluster.workers, use_gpu=bool(cluster.gpus_per_worker), resources_per_worker=resources
        ),
        run_config=RayRunConfig(
            name=config.name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=0),  # retried here, where a user's mistake can be told apart
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(cluster.threads)} if cluster.threads else {}},
        ),
    )


def _worker(payload: dict[str, Any]) -> None:
    """The body of one training process."""
    import ray
    import ray.train
    from ray.train.torch import get_device

    from unic_core.session import run_session
    from workflows.tracking import attach

    config = parse_config(payload["config"])
    if config.cluster.threads:
        torch.set_num_threads(config.cluster.threads)
    mailbox, first = payload["mailbox"], ray.train.get_context().get_world_rank() == 0
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    metrics = attach(payload["tracking_run"]) if first else None

    def emit(step: int, record: Record) -> None:
        if metrics is not None:
            metrics.log_metrics(step, {f"distill/{name}": value for name, value in record.items()})
        mailbox.put.remote("metrics", (step, record))

    try:
        run_session(
            config,
            payload["datasets"],
            payload["run"],
            device,
            emit,
            say=lambda line: mailbox.put.remote("line", line),
        )
    except UnicError as error:
        ray.get(mailbox.put.remote("mistake", str(error)))
        raise
    finally:
        if metrics is not None:
            metrics.close()


class _Delivery:
    """Takes notes out of the mailbox in a thread and hands them on while `fit()` blocks."""

    def __init__(self, mailbox: Any, emit: Callable[[int, Record], None], say: Callable[[str], None]) -> None:
        self.mailbox = mailbox
        self.emit = emit
        self.say = say
        self.mistake: str | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mailbox", daemon=True)

    def __enter__(self) -> _Delivery:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        last = False
        while not last:
            last = self._done.wait(0.5)
            self._deliver()

    def _deliver(self) -> None:
        import ray
        from ray.exceptions import RayError

        try:
            notes = ray.get(self.mailbox.take.remote(), timeout=10)
        except (RayError, TimeoutError) as error:
            log.debug("mailbox: %s", error)
            return
        for kind, value in notes:
            if kind == "metrics":
                self.emit(*value)
            elif kind == "line":
                self.say(value)
            else:
                self.mistake = value
