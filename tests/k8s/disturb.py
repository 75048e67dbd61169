"""Runs that are disturbed in the middle: long enough for it, followed meanwhile, compared with an undisturbed one."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable

from tests.k8s.help import NAMESPACE, STORE, get, kubectl, small, until
from unic_core.config import RunConfig
from unic_core.storage import open_store
from workflows.launch import Launcher

STEPS, EVERY = 900, 75
CONTINUING = r"continuing at step ([\d,]+) of"


def longer(name: str) -> RunConfig:
    """Long enough to be disturbed in the middle."""
    return small(name, f"training.steps={STEPS}", f"training.checkpoint_every={EVERY}", "training.keep_last=20")


def weights(name: str) -> str:
    """Checksum of the student."""
    return hashlib.sha256(open_store(f"{STORE}/runs/{name}/student").get("model.safetensors")).hexdigest()


def newest_checkpoint(name: str) -> int:
    keys = open_store(f"{STORE}/runs/{name}/checkpoints").list()
    return max((int(key[5:13]) for key in keys if key.endswith("/MANIFEST.json")), default=0)


class Watch(threading.Thread):
    """Follows a job as `unic logs` does, so that a test can act meanwhile."""

    def __init__(self, launcher: Launcher, name: str) -> None:
        super().__init__(daemon=True)
        self.launcher, self.name, self.lines = launcher, name, list[str]()

    def run(self) -> None:
        self.status = self.launcher.wait(self.name, self.lines.append, lambda note: self.lines.append(f"note: {note}"))

    def said(self, pattern: str) -> list[str]:
        return [match[1] for line in self.lines if (match := re.search(pattern, line))]

    def finish(self) -> None:
        """Until the job has succeeded."""
        self.join(1000)
        assert not self.is_alive(), self.lines[-20:]
        assert self.status.phase == "succeeded", (self.status, self.lines[-40:])

    def continued_at(self) -> list[int]:
        """The steps at which training went on from a checkpoint."""
        return [int(step.replace(",", "")) for step in self.said(CONTINUING)]


def run_disturbed(launcher: Launcher, name: str, fault: Callable[[str], None], interrupts: bool) -> str:
    """Checksum of the student of a run that a fault hits after two checkpoints, none of whose steps are repeated.

    Args:
        fault: called with the run's name. interrupts: training must have stopped for it and gone on.
    """
    assert launcher.submit(longer(name), STORE)
    watch = Watch(launcher, name)
    watch.start()
    until(lambda: newest_checkpoint(name) >= 2 * EVERY, "two checkpoints", 600)
    known, begin = newest_checkpoint(name), time.monotonic()
    fault(name)
    if interrupts:
        until(watch.continued_at, "training to go on", 600)
        print(f"{name}: training again {time.monotonic() - begin:.0f} s after the pod was deleted")
    watch.finish()
    assert all(step >= known for step in watch.continued_at()), (watch.continued_at(), known)
    return weights(name)


def delete_pod(name: str, grace_s: int) -> None:
    """Returns when the pod is gone, or was replaced under its name."""
    uid = get("pod", name)["metadata"]["uid"]
    flags = [f"--grace-period={grace_s}"] + (["--force"] if grace_s == 0 else [])
    kubectl("-n", NAMESPACE, "delete", "pod", name, "--wait=false", *flags)
    until(
        lambda: uid not in kubectl("-n", NAMESPACE, "get", "pods", "-o", "jsonpath={.items[*].metadata.uid}"), "it", 120
    )


def server_away(deployment: str, seconds: float) -> None:
    """The pod of a server is lost without grace and comes back after a while, with its data."""
    selector = {"s3": "seaweedfs", "mlflow": "mlflow"}[deployment]
    kubectl("-n", NAMESPACE, "scale", f"deployment/{deployment}", "--replicas=0")
    pods = ("-n", NAMESPACE, "delete", "pod", "-l", f"app.kubernetes.io/name={selector}")
    kubectl(*pods, "--grace-period=0", "--force")
    time.sleep(seconds)  # the outage itself
    kubectl("-n", NAMESPACE, "scale", f"deployment/{deployment}", "--replicas=1")
