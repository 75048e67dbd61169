"""Launching a run elsewhere: in a Kubernetes cluster, or in the background of this machine.

launcher = open_launcher(LaunchConfig(backend="pytorchjob", namespace="team"))
launcher.submit(run, root="s3://bucket/unic")     # attaches when the job exists
status = launcher.wait(run.name, say, note)       # with the live log of the driver
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from unic_core.config import RunConfig
from workflows.launch.config import Backend, LaunchConfig, Owner, Phase, Status, job_name

__all__ = ["Backend", "LaunchConfig", "Launcher", "Owner", "Phase", "Status", "job_name", "open_launcher"]

LOCAL_JOBS = Path(".unic/jobs")


class Launcher(Protocol):
    """One way to run jobs. A job has the name of its run; nothing of it is stored here."""

    def submit(self, run: RunConfig, root: str) -> bool:
        """Start the job, or attach to it when it exists; True when it was started."""
        ...

    def status(self, name: str) -> Status:
        """Where the job stands, with the reasons why it does not go on."""
        ...

    def wait(self, name: str, say: Callable[[str], None], note: Callable[[str], None]) -> Status:
        """Return when the job has ended; `say` gets the lines of its driver, `note` what keeps it waiting."""
        ...

    def cancel(self, name: str) -> bool:
        """End the job; what it stored stays. False when there is none."""
        ...


def open_launcher(launch: LaunchConfig) -> Launcher:
    """The launcher of `launch.backend`.

    Raises:
        UnicError: no cluster is set up here.
    """
    if launch.backend == "local":
        from workflows.launch.local import LocalJobs

        return LocalJobs(launch, LOCAL_JOBS)
    from workflows.launch.jobs import KINDS, ClusterJobs

    return ClusterJobs(KINDS[launch.backend], launch)
