"""What a launch needs to know beside the run's own config: where it runs, in which image, with how much of what."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from unic_core import __version__
from unic_core.config import Frozen, RunConfig
from unic_core.errors import UnicError

Backend = Literal["pytorchjob", "rayjob", "local"]
Phase = Literal["pending", "running", "succeeded", "failed", "absent"]
Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|k|Ki|[MGTPE]i?)?$")]

IMAGE = f"unic:{__version__}"
NAMESPACE = "unic"
MAX_NAME = 50  # the operators append to it, and a label holds 63 characters
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


class Owner(Frozen):
    """A pod whose deletion deletes the job: that of a pipeline's step."""

    name: str
    uid: str


class LaunchConfig(Frozen):
    """Where and how the pods of one job run. What the run computes is in its RunConfig, and only there."""

    backend: Backend = "pytorchjob"
    namespace: str = NAMESPACE
    image: str = IMAGE
    stage: Literal["run", "distill"] = "run"
    """`run`: prepare, distill, evaluate, report; `distill`: only the first two."""
    workers_per_pod: int = Field(1, gt=0)
    """Training processes in one pod; the pods that the run's `cluster.workers` need follow from it."""
    cpu: Quantity | None = None
    """CPU limit of a pod; by default what its training processes reserve."""
    cpu_request: Quantity | None = None
    """What the scheduler sets aside; by default the limit."""
    memory: Quantity = "16Gi"
    shared_memory: Quantity = "4Gi"
    """Size of /dev/shm, which counts as memory."""
    scratch: Quantity = "20Gi"
    """Size of the node's cache for shards, teachers and checkpoints."""
    service_account: str = "unic-job"
    priority_class: str = ""
    queue: str = ""
    """LocalQueue of Kueue; the job then starts suspended."""
    deadline_s: int = Field(14 * 24 * 3600, gt=0)
    """A job that takes longer is ended."""
    keep_s: int = Field(7 * 24 * 3600, gt=0)
    """How long a finished job stays visible in the cluster."""
    owner: Owner | None = None
    environment: dict[str, str] = Field({})
    """More variables of the pods' environment. Nothing secret."""

    def pods(self, run: RunConfig) -> int:
        """Pods of the job, the one with the driver included."""
        return math.ceil(run.cluster.workers / self.workers_per_pod)

    def cpus(self, run: RunConfig) -> int:
        """CPU cores that Ray may hand out in one pod."""
        return math.ceil(self.workers_per_pod * run.cluster.cpus_per_worker)

    def gpus(self, run: RunConfig) -> int:
        """GPUs of one pod."""
        return math.ceil(self.workers_per_pod * run.cluster.gpus_per_worker)


@dataclass(frozen=True)
class Status:
    """Where a job stands. `reasons` are sentences: why it waits, why it failed."""

    phase: Phase
    reasons: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        return self.phase in {"succeeded", "failed", "absent"}


def job_name(run: RunConfig) -> str:
    """The job is named after its run, so that launching the run again finds it.

    Raises:
        UnicError: Kubernetes does not allow this name.
    """
    if len(run.name) > MAX_NAME or not _NAME.fullmatch(run.name):
        raise UnicError(
            f"{run.name!r} can't name a job in a cluster; use at most {MAX_NAME} lower-case letters, digits and "
            "'-', beginning with a letter, as in name=my-run"
        )
    return run.name
