"""States of pods as an API server reports them, and the sentences they become."""

from __future__ import annotations

import re
from typing import Any

import pytest

from workflows.launch.diagnosis import last_words, reasons


def pod(**status: Any) -> dict[str, Any]:
    containers = [{"name": "pytorch", "resources": {"limits": {"memory": "3Gi"}}}]
    return {"metadata": {"name": "job-worker-0"}, "spec": {"containers": containers}, "status": status}


def container(**state: Any) -> dict[str, Any]:
    return {"name": "pytorch", "image": "registry/unic:1", "state": state}


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
}
CASES = [
    (pod(conditions=[UNSCHEDULABLE]), "no node has room for job-worker-0 .*Insufficient nvidia.com/gpu"),
    (
        pod(containerStatuses=[container(waiting={"reason": "ImagePullBackOff", "message": "Back-off pulling image"})]),
        "the image registry/unic:1 can't be pulled",
    ),
    (
        pod(
            containerStatuses=[
                container(waiting={"reason": "CreateContainerConfigError", "message": 'secret "unic-ray" not found'})
            ]
        ),
        'can\'t start .secret "unic-ray" not found.*docs/kubernetes.md',
    ),
    (
        pod(containerStatuses=[container(terminated={"reason": "OOMKilled", "exitCode": 137})]),
        r"ran out of memory \(limit 3Gi\); raise --memory",
    ),
    (pod(reason="Evicted", message="The node was low on resource: memory."), "was evicted .*low on resource"),
]


@pytest.mark.parametrize(("found", "sentence"), CASES)
def test_pod_states(found: dict[str, Any], sentence: str) -> None:
    (said,) = reasons([found], [])
    assert re.search(sentence, said)


def test_quota_and_pod_security_come_from_events() -> None:
    quota = 'pods "x-worker-0" is forbidden: exceeded quota: small, requested: cpu=4, used: cpu=0, limited: cpu=2'
    security = 'pods "x-worker-0" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true'
    said = reasons([], [{"message": quota}, {"message": quota}, {"message": security}, {"message": "Created pod: x"}])
    assert len(said) == 2
    assert said[0].startswith(
        "the quota small does not allow these pods (requested: cpu=4, used: cpu=0, limited: cpu=2)"
    )
    assert "runAsNonRoot != true" in said[1]


def test_a_healthy_pod_needs_no_words() -> None:
    assert reasons([pod(phase="Running", containerStatuses=[container(running={"startedAt": "now"})])], []) == ()


def test_last_words_are_those_of_the_container_that_failed() -> None:
    failed = container(terminated={"exitCode": 2, "message": "first\nconfig x: unknown key\n"})
    assert last_words(pod(containerStatuses=[failed])) == "config x: unknown key"
    assert last_words(pod(containerStatuses=[container(terminated={"exitCode": 0, "message": "fine"})])) == ""
