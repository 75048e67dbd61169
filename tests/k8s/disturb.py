"""Runs that are disturbed in the middle: long enough for it, followed meanwhile, compared with an undisturbed one."""

from __future__ import annotations

import hashlib
import re
import threading

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


def delete_pod(name: str, grace_s: int) -> None:
    """Returns when the pod is gone, or was replaced under its name."""
    uid = get("pod", name)["metadata"]["uid"]
    flags = [f"--grace-period={grace_s}"] + (["--force"] if grace_s == 0 else [])
    kubectl("-n", NAMESPACE, "delete", "pod", name, "--wait=false", *flags)
    until(
        lambda: uid not in kubectl("-n", NAMESPACE, "get", "pods", "-o", "jsonpath={.items[*].metadata.uid}"), "it", 120
    )
