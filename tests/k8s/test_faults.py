"""Pods that die while a run trains: it ends with the very weights of an undisturbed run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.k8s.disturb import CONTINUING, EVERY, Watch, delete_pod, longer, newest_checkpoint, weights
from tests.k8s.help import NAMESPACE, STORE, get, kubectl, small, until
from workflows.launch import Launcher

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


def scale(deployment: str, replicas: int) -> None:
    kubectl("-n", NAMESPACE, "scale", f"deployment/{deployment}", f"--replicas={replicas}")
    if replicas == 0:
        selector = {"s3": "seaweedfs", "mlflow": "mlflow"}[deployment]
        pods = ["-n", NAMESPACE, "delete", "pod", "-l", f"app.kubernetes.io/name={selector}"]
        kubectl(*pods, "--grace-period=0", "--force")


def gone_for(deployment: str, seconds: float) -> None:
    """A server whose pod is lost and comes back after a while, with its data."""
    scale(deployment, 0)
    time.sleep(seconds)  # the outage itself
    scale(deployment, 1)


FAULTS: dict[str, Callable[[str], None]] = {
    "worker-lost": lambda job: delete_pod(f"{job}-worker-1", 0),
    "worker-drained": lambda job: delete_pod(f"{job}-worker-1", 90),
    "head-lost": lambda job: delete_pod(f"{job}-worker-0", 0),
    "head-drained": lambda job: delete_pod(f"{job}-worker-0", 90),
    "s3-away": lambda job: gone_for("s3", 20),
    "mlflow-away": lambda job: gone_for("mlflow", 60),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_disturbed_run_ends_as_an_undisturbed_one(
    fault: str, undisturbed: str, launcher: Launcher, remove: Callable[[str], None]
) -> None:
    remove(fault)
    assert launcher.submit(longer(fault), STORE)
    watch = Watch(launcher, fault)
    watch.start()
    until(lambda: newest_checkpoint(fault) >= 2 * EVERY, "two checkpoints", 600)
    known = newest_checkpoint(fault)
    begin = time.monotonic()
    FAULTS[fault](fault)
    if not fault.endswith("away"):
        until(lambda: watch.said(CONTINUING), "training to go on", 600)
        print(f"{fault}: training again {time.monotonic() - begin:.0f} s after the pod was deleted")
    watch.finish()
    assert weights(fault) == undisturbed
    resumed = [int(step.replace(",", "")) for step in watch.said(CONTINUING)]
    assert all(step >= known for step in resumed), (resumed, known)


@contextmanager
def no_room() -> Iterator[None]:
    """No node takes new pods meanwhile."""
    nodes = [node["metadata"]["name"] for node in get("nodes")["items"] if not node["spec"].get("unschedulable")]
    kubectl("cordon", *nodes)
    try:
        yield
    finally:
        kubectl("uncordon", *nodes)


def test_an_elastic_run_goes_on_with_one_pod_and_grows_back(launcher: Launcher, remove: Callable[[str], None]) -> None:
    remove("elastic")
    steps = ("training.steps=4000", f"training.checkpoint_every={EVERY}", "training.keep_last=60")
    assert launcher.submit(small("elastic", *steps, "cluster.min_workers=1", "cluster.resize_s=5"), STORE)
    watch = Watch(launcher, "elastic")
    watch.start()
    until(lambda: newest_checkpoint("elastic") >= 2 * EVERY, "two checkpoints", 600)
    known = newest_checkpoint("elastic")
    sizes = r"images a step in (\d) process"
    with no_room():
        delete_pod("elastic-worker-1", 0)
        until(lambda: watch.said(sizes)[-1] == "1", "training to go on with one pod", 300)
    until(lambda: watch.said(sizes)[-1] == "2", "training to grow back", 300)
    watch.finish()
    assert watch.said(sizes) == ["2", "1", "2"]
    resumed = [int(step.replace(",", "")) for step in watch.said(CONTINUING)]
    assert len(resumed) == 2
    assert known <= resumed[0] < resumed[1]
