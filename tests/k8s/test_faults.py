"""Pods that die while a run trains: it ends with the very weights of an undisturbed run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.k8s.disturb import EVERY, Watch, delete_pod, newest_checkpoint, run_disturbed, server_away
from tests.k8s.help import STORE, get, kubectl, small, until
from workflows.launch import Launcher

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


FAULTS: dict[str, Callable[[str], None]] = {
    "worker-lost": lambda job: delete_pod(f"{job}-worker-1", 0),
    "worker-drained": lambda job: delete_pod(f"{job}-worker-1", 90),
    "head-lost": lambda job: delete_pod(f"{job}-worker-0", 0),
    "head-drained": lambda job: delete_pod(f"{job}-worker-0", 90),
    "s3-away": lambda job: server_away("s3", 20),
    "mlflow-away": lambda job: server_away("mlflow", 60),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_disturbed_run_ends_as_an_undisturbed_one(
    fault: str, undisturbed: str, launcher: Launcher, remove: Callable[[str], None]
) -> None:
    remove(fault)
    interrupts = not fault.endswith("away")
    assert run_disturbed(launcher, fault, FAULTS[fault], interrupts) == undisturbed


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
    resumed = watch.continued_at()
    assert len(resumed) == 2
    assert known <= resumed[0] < resumed[1]
