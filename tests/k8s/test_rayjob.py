"""The same run under KubeRay."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.k8s.help import STORE, kubectl, settings, small
from unic_core.storage import open_store
from workflows.launch import open_launcher

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


def test_a_rayjob_gives_a_student(services: None, remove: Callable[[str], None]) -> None:
    if "rayjobs.ray.io" not in kubectl("get", "crd", "-o", "name"):
        pytest.skip("the cluster has no KubeRay")
    remove("on-ray")
    launcher = open_launcher(settings(backend="rayjob"))
    assert launcher.submit(small("on-ray"), STORE)
    assert not launcher.submit(small("on-ray"), STORE)
    lines: list[str] = []
    status = launcher.wait("on-ray", lines.append, lines.append)
    assert status.phase == "succeeded", (status, lines[-30:])
    assert any("in 2 process(es)" in line for line in lines)
    assert {"student/model.safetensors", "report/index.html"} <= open_store(f"{STORE}/runs/on-ray").list().keys()
