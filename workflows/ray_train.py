"""Runs a distillation in the processes of a Ray Train worker group, and starts it again when something is lost.

Checkpoints are the session's own (verified, on the run's store), so Ray keeps none: a restarted group simply opens
the run again and continues at the newest valid one.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

from unic_core.checkpoint import list_checkpoints
from unic_core.config import RunConfig
from unic_core.errors import UnicError
from unic_core.history import Record
from unic_core.storage import join, open_store
from workflows.mailbox import Mailbox
from workflows.storage import ray_filesystem

log = logging.getLogger(__name__)

# Set before Ray is imported anywhere in this process; pods may override each of them.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # or Ray re-runs `uv run` in every worker
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # or every line appears twice
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",  # an elastic run shrinks after it
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2",
}
_RETRY_PAUSE_S = 2.0
_PATIENCE_S = 60.0  # before people are told what the run waits for


def run_distillation(
    config: RunConfig,
    datasets: dict[str, str],
    run: str,
    tracking_run: str,
    emit: Callable[[int, Record], None],
    say: Callable[[str], None],
) -> None:
    """Train the run at the URI `run` on a Ray cluster: the one at RAY_ADDRESS, else one on this machine.

    A worker group that dies is started again and continues at its last checkpoint. It may fail
    `cluster.max_failures` times in a row without a new checkpoint; preemptions do not count. A mistake of the user
    (UnicError) is raised at once. Ctrl-C and SIGTERM write a checkpoint before they end the run.

    Args:
        tracking_run: id of the MLflow run that process 0 logs its metrics to.
        emit: called in this process with the newest metrics.
        say: called in this process with lines for people.
    """
    os.environ.update({key: os.environ.get(key, value) for key, value in _ENVIRONMENT.items()})
    from ray.train import ControllerError, WorkerGroupError

    with _cluster(config):
        mailbox = _mailbox()
        payload = {
            "config": config.model_dump(mode="json"),
            "datasets": datasets,
            "run": run,
            "tracking_run": tracking_run,
            "mailbox": mailbox,
        }
        failures, reached = 0, -1
        while True:
            delivery = _Delivery(mailbox, emit, say, _needs(config))
            try:
                with delivery:
                    _wait(_start(_trainer(config, run, payload).fit), mailbox, delivery, config.cluster.stop_s)
            except (WorkerGroupError, ControllerError) as error:
                if delivery.mistake is not None:
                    raise UnicError(delivery.mistake) from None
                newest = _newest_step(run)
                failures = 1 if newest > reached else failures + 1
                reached = newest
                if failures > config.cluster.max_failures:
                    reason = str(error).strip().splitlines()[-1]
                    raise UnicError(
                        f"run {config.name} failed {failures} times without a new checkpoint, last with: {reason}; "
                        "mend the cause and start it again: it continues at its last checkpoint"
                    ) from error
                say(f"{type(error).__name__}; starting the workers again, they continue at the last checkpoint")
                time.sleep(_RETRY_PAUSE_S)
            else:
                return


def _newest_step(run: str) -> int:
    """The step of the newest complete checkpoint, 0 when there is none."""
    return max((info.step for info in list_checkpoints(open_store(run)) if info.complete), default=0)


def _needs(config: RunConfig) -> str:
    """What one start of the worker group asks of the cluster, for people."""
    cluster = config.cluster
    gpus = f" and {cluster.gpus_per_worker:g} GPU" if cluster.gpus_per_worker else ""
    return f"{cluster.min_workers or cluster.workers} worker(s) with {cluster.cpus_per_worker:g} CPU{gpus} each"


def _start(function: Callable[[], object]) -> Future[object]:
    """Call `function` in a thread. In the main thread Ray would replace the handler of Ctrl-C by one of its own."""
    outcome: Future[object] = Future()

    def call() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=call, name="fit", daemon=True).start()  # a daemon: Ctrl-C does not wait for it
    return outcome


def _wait(outcome: Future[object], mailbox: Any, delivery: _Delivery, patience: float) -> None:
    """Until training ends; a signal lets the workers write a checkpoint first, a second one does not."""
    try:
        outcome.result()
    except (KeyboardInterrupt, SystemExit):
        if delivery.training and not outcome.done():
            delivery.say(f"stopping: writing a checkpoint, at most {patience:.0f} s; once more to stop at once")
            mailbox.stop.remote()
            with suppress(TimeoutError):
                outcome.exception(timeout=patience)
        raise


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
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(**options)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray's own would end the process as if it had failed
    try:
        yield
    finally:
        ray.shutdown()


def _mailbox() -> Any:
    """A mailbox on the driver's machine: it must not go away with a worker's."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox).remote()


def _trainer(config: RunConfig, run: str, payload: dict[str, Any]) -> Any:
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from workflows.ray_worker import train_worker

    cluster = config.cluster
    filesystem, path = ray_filesystem(join(run, "ray"))
    resources: dict[str, float] = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    return TorchTrainer(
        train_worker,
        train_loop_config=payload,
        torch_config=TorchConfig(
            # the CPU's backend is for what must not wait for the device
            backend="cpu:gloo,cuda:nccl" if cluster.gpus_per_worker else "gloo",
            timeout_s=cluster.timeout_s,
        ),
        scaling_config=ScalingConfig(
            num_workers=(cluster.min_workers, cluster.workers) if cluster.min_workers else cluster.workers,
            use_gpu=bool(cluster.gpus_per_worker),
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=cluster.resize_s,
        ),
        run_config=RayRunConfig(
            name=config.name,
            storage_path=path,
            storage_filesystem=filesystem,
            # failures are retried here, where a user's mistake can be told apart; preemptions by Ray, without limit
            failure_config=FailureConfig(max_failures=0),
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(cluster.threads)} if cluster.threads else {}},
        ),
    )


class _Delivery:
    """Takes notes out of the mailbox in a thread and hands them on while the trainer works."""

    def __init__(
        self, mailbox: Any, emit: Callable[[int, Record], None], say: Callable[[str], None], needs: str
    ) -> None:
        self.mailbox = mailbox
        self.emit = emit
        self.say = say
        self.needs = needs
        self.mistake: str | None = None
        self.training = False  # some worker has said something
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mailbox", daemon=True)

    def __enter__(self) -> _Delivery:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        last, patience = False, time.monotonic() + _PATIENCE_S
        while not last:
            last = self._done.wait(0.5)
            self._deliver()
            if not self.training and time.monotonic() > patience:
                self._complain()
                patience = time.monotonic() + 10 * _PATIENCE_S

    def _complain(self) -> None:
        import ray

        there = ", ".join(f"{key} {value:g}" for key, value in ray.cluster_resources().items() if key in {"CPU", "GPU"})
        self.say(f"no worker has reported yet: {self.needs} wanted, the cluster has {there or 'no CPU'} in all")

    def _deliver(self) -> None:
        import ray
        from ray.exceptions import RayError

        try:
            notes = ray.get(self.mailbox.take.remote(), timeout=10)
        except (RayError, TimeoutError) as error:
            log.debug("mailbox: %s", error)
            return
        for kind, value in notes:
            self.training = True
            if kind == "metrics":
                self.emit(*value)
            elif kind == "line":
                self.say(value)
            else:
                self.mistake = value
