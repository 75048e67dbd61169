"""One process of a Ray Train worker group: runs `unic_core.session` and talks to the driver through the mailbox."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import Any

import torch

from unic_core.config import RunConfig, parse_config
from unic_core.errors import OutageError, UnicError
from unic_core.history import Record
from unic_core.interrupt import Wish
from unic_core.session import Surroundings, run_session
from unic_core.storage import Store, open_store
from workflows.storage import trust_endpoint
from workflows.tracking import Run, attach

log = logging.getLogger(__name__)

UNSENT = "unsent-metrics.jsonl"  # beside the checkpoints: what MLflow had not taken yet
_ASK_SECONDS = 2.0  # between questions for an announced preemption
_STOP_SECONDS = 1.0  # between looks into the mailbox


def train_worker(payload: dict[str, Any]) -> None:
    """The body of one training process; `payload` is what `run_distillation` put together."""
    import ray
    import ray.train
    from ray.train.torch import get_device

    trust_endpoint()  # a worker may start in the middle of an outage
    config, mailbox = parse_config(payload["config"]), payload["mailbox"]
    first = ray.train.get_context().get_world_rank() == 0
    device = get_device()
    _configure_torch(config, device)
    tracker = _Tracker(payload["tracking_run"], open_store(payload["run"])) if first else None

    def emit(step: int, record: Record) -> None:
        if tracker is not None:
            tracker.run.log_metrics(step, {f"distill/{name}": value for name, value in record.items()})
        mailbox.put.remote("metrics", (step, record))

    around = Surroundings(
        emit=emit,
        say=lambda line: mailbox.put.remote("line", line),
        alongside=tracker.save if tracker is not None else lambda: None,
        wish=_Wishes(mailbox) if first else lambda: Wish.NONE,
        preempted=lambda: ray.train.get_preemption_info() is not None,
    )
    try:
        run_session(config, payload["datasets"], payload["run"], device, around)
    except OutageError:  # the group is started again
        raise
    except UnicError as error:
        ray.get(mailbox.put.remote("mistake", str(error)))
        raise
    finally:
        if tracker is not None:
            tracker.run.close()


def _configure_torch(config: RunConfig, device: torch.device) -> None:
    if config.cluster.threads:
        torch.set_num_threads(config.cluster.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


class _Tracker:
    """The MLflow run of process 0. Points that the server had not taken survive the loss of this machine."""

    def __init__(self, run_id: str, store: Store) -> None:
        self.run: Run = attach(run_id)
        self.store = store
        with contextlib.suppress(FileNotFoundError):
            self.run.adopt(store.get(UNSENT))

    def save(self) -> None:
        """Keep what is not sent yet beside the checkpoint that is about to be written."""
        self.store.put(UNSENT, self.run.unsent())


class _Wishes:
    """What process 0 wants after a step: to end when the driver says so, else now and then to ask about preemption."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._stop = False
        self._asked = time.monotonic()
        threading.Thread(target=self._watch, name="wishes", daemon=True).start()

    def __call__(self) -> Wish:
        if self._stop:
            return Wish.STOP
        if time.monotonic() - self._asked < _ASK_SECONDS:
            return Wish.NONE
        self._asked = time.monotonic()
        return Wish.ASK

    def _watch(self) -> None:
        import ray
        from ray.exceptions import RayError

        while not self._stop:
            time.sleep(_STOP_SECONDS)
            try:
                self._stop = ray.get(self._mailbox.should_stop.remote(), timeout=30)
            except (RayError, TimeoutError) as error:
                log.debug("mailbox: %s", error)
