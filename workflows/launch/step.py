"""A step of a pipeline that trains in pods of their own: it starts the job, shows its log, and ends it when told to.

The step's own pod is small and holds no GPU. When it is stopped, Kubeflow leaves it less than a second: the handler
of SIGTERM sends one DELETE over a connection that is kept open for it, and nothing else. What that misses, the job's
owner (the step's pod) and its deadline end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from kubernetes import client

from unic_core.config import RunConfig
from unic_core.errors import UnicError
from workflows.launch.cluster import TIMEOUT, connect
from workflows.launch.config import LaunchConfig, Owner, Status, job_name
from workflows.launch.jobs import KINDS, ClusterJobs

STOPPED = 128 + signal.SIGTERM
TICK_S = 0.2
WARM_S = 20.0  # the API server closes a connection that was idle for 90 s
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
# what leads the job's driver to the runs in MLflow that Kubeflow made, and to Kubeflow's page of the run
HANDED_ON = ("MLFLOW_RUN_ID", "KFP_MLFLOW_CONFIG", "KFP_RUN_ID", "KFP_UI_URL")


def settings_of_step(**settings: Any) -> LaunchConfig:
    """The launch of a step from inside its pod: in the pod's namespace, owned by the pod.

    Args:
        settings: of LaunchConfig, `backend`, `image` and the like.

    Raises:
        UnicError: this is no pod of a pipeline's step.
    """
    return settings_from(os.environ, NAMESPACE_FILE, **settings)


def settings_from(environment: Mapping[str, str], namespace: Path, **settings: Any) -> LaunchConfig:
    """As `settings_of_step`, for an environment and the file that names the namespace."""
    try:
        owner = Owner(name=environment["KFP_POD_NAME"], uid=environment["KFP_POD_UID"])
        place = namespace.read_text().strip()
    except (KeyError, OSError):
        raise UnicError(
            f"{settings['backend']} starts pods, and this is no step in a cluster; choose the launcher local here"
        ) from None
    handed = {key: environment[key] for key in HANDED_ON if environment.get(key)}
    return LaunchConfig(namespace=place, owner=owner, stage="distill", environment=handed, **settings)


def follow_job(launch: LaunchConfig, run: RunConfig, root: str, say: Callable[[str], None]) -> None:
    """Start the job of `run`, or attach to it, and show its driver's log until it has ended.

    SIGTERM deletes the job and ends this process on the spot.

    Raises:
        UnicError: the cluster refuses the job, or the job failed; with the cluster's reason.
    """
    jobs = ClusterJobs(KINDS[launch.backend], launch)
    guard = Guard(jobs, job_name(run))
    with guard, ThreadPoolExecutor(1, "job") as pool:
        status = guard.watch(pool.submit(_follow, jobs, run, root, say, guard.arm))
    if status.phase != "succeeded":
        reasons = "; ".join(status.reasons) or "no reason is known; see its pods' logs"
        what = "was deleted" if status.phase == "absent" else "failed"
        raise UnicError(f"the {jobs.kind.name} {job_name(run)} {what}: {reasons}")


def _follow(
    jobs: ClusterJobs, run: RunConfig, root: str, say: Callable[[str], None], arm: Callable[[], None]
) -> Status:
    name = job_name(run)
    while True:
        own = jobs.submit(run, root)
        arm()
        say(f"{'started' if own else 'attached to'} {jobs.kind.name} {name} in {jobs.namespace}")
        status = jobs.wait(name, say, say)
        if status.phase != "absent":
            return status
        if own:
            return Status("absent", ("somebody else ended it",))
        say(f"{name} went with the pod that had started it; starting it again, it continues at its last checkpoint")


class Guard:
    """Deletes a job the moment this process gets SIGTERM; while the block is entered, in the main thread."""

    def __init__(self, jobs: ClusterJobs, name: str) -> None:
        self.name, self.place = name, jobs.place
        self._objects = client.CustomObjectsApi(connect())  # of its own: no other thread may hold its connection
        self._armed = self._busy = self._told = False

    def __enter__(self) -> Guard:
        self._former = signal.signal(signal.SIGTERM, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._former)

    def arm(self) -> None:
        """From now on there is a job of ours to delete."""
        self._armed = True

    def watch(self, outcome: Future[Status]) -> Status:
        """Wait for the outcome, and keep the connection open meanwhile."""
        warmed = float("-inf")
        while not outcome.done():
            if time.monotonic() - warmed > WARM_S:
                self._warm()
                warmed = time.monotonic()
            wait([outcome], TICK_S)
        return outcome.result()

    def _warm(self) -> None:
        self._busy = True
        with contextlib.suppress(Exception):  # the thread that follows the job says when the API server is away
            self._objects.get_namespaced_custom_object(**self.place, name=self.name, _request_timeout=TIMEOUT)
        self._busy = False
        if self._told:
            self._end()

    def _stop(self, *_: object) -> None:
        self._told = True
        if not self._busy:  # else in a moment: the connection can't be used twice at a time
            self._end()

    def _end(self) -> None:
        with contextlib.suppress(Exception):  # nothing can be mended or said any more
            if self._armed:
                self._objects.delete_namespaced_custom_object(
                    **self.place, name=self.name, propagation_policy="Background", _request_timeout=TIMEOUT
                )
        os._exit(STOPPED)
