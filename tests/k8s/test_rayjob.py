"""The same run under KubeRay, undisturbed and with pods that die."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.k8s.disturb import CONTINUING, EVERY, Watch, delete_pod, longer, newest_checkpoint, weights
from tests.k8s.help import STORE, get, kubectl, settings, small, until
from unic_core.storage import open_store
from workflows.launch import Launcher, open_launcher

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


@pytest.fixture
def rays(services: None) -> Launcher:
    if "rayjobs.ray.io" not in kubectl("get", "crd", "-o", "name"):
        pytest.skip("the cluster has no KubeRay")
    return open_launcher(settings(backend="rayjob"))


def test_a_rayjob_gives_a_student(rays: Launcher, remove: Callable[[str], None]) -> None:
    remove("on-ray")
    assert rays.submit(small("on-ray"), STORE)
    assert not rays.submit(small("on-ray"), STORE)
    lines: list[str] = []
    status = rays.wait("on-ray", lines.append, lines.append)
    assert status.phase == "succeeded", (status, lines[-30:])
    assert any("in 2 process(es)" in line for line in lines)
    assert {"student/model.safetensors", "report/index.html"} <= open_store(f"{STORE}/runs/on-ray").list().keys()


def pod_of(job: str, role: str) -> str:
    """The name of the job's pod that is Ray's head or its worker."""
    (cluster,) = (item for item in get("rayclusters")["items"] if item["metadata"]["name"].startswith(job))
    labels = f"ray.io/cluster={cluster['metadata']['name']},ray.io/node-type={role}"
    (pod,) = get("pods", selector=labels)["items"]
    return str(pod["metadata"]["name"])


@pytest.mark.parametrize("role", ["worker", "head"])
@pytest.mark.parametrize("grace_s", [0, 90], ids=["lost", "drained"])
def test_a_disturbed_rayjob_ends_as_an_undisturbed_run(
    role: str, grace_s: int, undisturbed: str, rays: Launcher, remove: Callable[[str], None]
) -> None:
    job = f"ray-{role}-{grace_s}"
    remove(job)
    assert rays.submit(longer(job), STORE)
    watch = Watch(rays, job)
    watch.start()
    until(lambda: newest_checkpoint(job) >= 2 * EVERY, "two checkpoints", 600)
    known, begin = newest_checkpoint(job), time.monotonic()
    delete_pod(pod_of(job, role), grace_s)
    until(lambda: watch.said(CONTINUING), "training to go on", 600)
    print(f"{job}: training again {time.monotonic() - begin:.0f} s after the pod was deleted")
    watch.finish()
    assert weights(job) == undisturbed
    resumed = [int(step.replace(",", "")) for step in watch.said(CONTINUING)]
    assert all(step >= known for step in resumed), (resumed, known)
