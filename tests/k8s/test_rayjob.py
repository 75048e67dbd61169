"""The same run under KubeRay, undisturbed and with pods that die."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.k8s.disturb import delete_pod, run_disturbed, server_away
from tests.k8s.help import STORE, get, settings, small
from unic_core.storage import open_store
from workflows.launch import Launcher, open_launcher

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


@pytest.fixture
def rays(services: None, kuberay: None) -> Launcher:
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


FAULTS: dict[str, Callable[[str], None]] = {
    "ray-worker-lost": lambda job: delete_pod(pod_of(job, "worker"), 0),
    "ray-worker-drained": lambda job: delete_pod(pod_of(job, "worker"), 90),
    "ray-head-lost": lambda job: delete_pod(pod_of(job, "head"), 0),
    "ray-head-drained": lambda job: delete_pod(pod_of(job, "head"), 90),
    "ray-s3-away": lambda _: server_away("s3", 20),
    "ray-mlflow-away": lambda _: server_away("mlflow", 60),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_disturbed_rayjob_ends_as_an_undisturbed_run(
    fault: str, undisturbed: str, rays: Launcher, remove: Callable[[str], None]
) -> None:
    remove(fault)
    interrupts = not fault.endswith("away")
    assert run_disturbed(rays, fault, FAULTS[fault], interrupts) == undisturbed
