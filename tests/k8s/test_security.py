"""Who can reach what: network policies, Ray's token, rights of the service accounts, pod security."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kubernetes.client import CoreV1Api
from kubernetes.client.exceptions import ApiException

from tests.k8s.help import NAMESPACE, STORE, get, kubectl, settings, small, until, wipe
from workflows.launch import open_launcher
from workflows.launch.cluster import connect
from workflows.launch.pods import container, template

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5); print('reached')"
JOIN = """
import os, sys
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": sys.argv[2]}
import ray
ray.init(address=f"{sys.argv[1]}:6379")
print("joined")
"""


@pytest.fixture(scope="module")
def head(services: None) -> Iterator[str]:
    """The address of pod 0 of a job that runs for as long as the tests need."""
    wipe("guarded")
    open_launcher(settings()).submit(small("guarded", "training.steps=1000000"), STORE)
    until(lambda: _is_ready("guarded-worker-0"), "a running head")
    yield get("pod", "guarded-worker-0")["status"]["podIP"]
    wipe("guarded")


def _is_ready(pod: str) -> bool:
    found = get("pods", field_selector=f"metadata.name={pod}")["items"]
    conditions = [c for item in found for c in item["status"].get("conditions", [])]
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def in_pod(name: str, job: str, script: str, *arguments: str) -> tuple[str, str]:
    """Phase and log of a pod that runs a script; `job`: whose labels it wears."""
    run = small(job)
    body: dict[str, Any] = template(settings(), run, {"name": "probe", **container(settings(), run)})
    body["spec"] |= {"restartPolicy": "Never", "volumes": [v for v in body["spec"]["volumes"] if v["name"] != "config"]}
    probe = body["spec"]["containers"][0]
    probe["volumeMounts"] = [mount for mount in probe["volumeMounts"] if mount["name"] != "config"]
    probe |= {"command": ["python", "-c", script], "args": list(arguments)}
    pod = {"apiVersion": "v1", "kind": "Pod", **body}
    pod["metadata"] = {**body["metadata"], "name": name}
    kubectl("-n", NAMESPACE, "delete", "pod", name, "--ignore-not-found", "--grace-period=0", "--force")
    kubectl("-n", NAMESPACE, "create", "-f", "-", stdin=json.dumps(pod))
    finished = {"Succeeded", "Failed"}
    phase = until(lambda: (p := get("pod", name)["status"].get("phase")) in finished and p, "the probe's end", 240)
    log = kubectl("-n", NAMESPACE, "logs", name)
    kubectl("-n", NAMESPACE, "delete", "pod", name, "--grace-period=0", "--force")
    return str(phase), log


@pytest.mark.parametrize("port", [6379, 6380, 6385])
def test_only_pods_of_the_same_job_reach_its_ports(head: str, port: int) -> None:
    assert in_pod("stranger", "other", CONNECT, head, str(port))[0] == "Failed"
    phase, log = in_pod("member", "guarded", CONNECT, head, str(port))
    assert (phase, log.strip()) == ("Succeeded", "reached")


def test_the_dashboard_is_not_reached_even_by_members(head: str) -> None:
    assert in_pod("member", "guarded", CONNECT, head, "8265")[0] == "Failed"


def test_a_wrong_token_is_refused(head: str) -> None:
    phase, log = in_pod("member", "guarded", JOIN, head, "0" * 64)
    assert phase == "Failed"
    assert "joined" not in log


ALLOWED = {
    "unic-job": set[tuple[str, str]](),
    "unic-launcher": {
        *(("create", kind) for kind in ("pytorchjobs.kubeflow.org", "rayjobs.ray.io", "configmaps")),
        *(("get", kind) for kind in ("pytorchjobs.kubeflow.org", "rayjobs.ray.io", "pods/log")),
        *(("delete", kind) for kind in ("pytorchjobs.kubeflow.org", "rayjobs.ray.io")),
        *(("list", kind) for kind in ("pods", "events")),
        *((verb, "networkpolicies.networking.k8s.io") for verb in ("create", "update")),
        ("update", "configmaps"),
    },
}
KINDS = (
    *("pytorchjobs.kubeflow.org", "rayjobs.ray.io", "configmaps", "networkpolicies.networking.k8s.io"),
    *("pods", "pods/log", "pods/exec", "events", "secrets", "serviceaccounts", "roles.rbac.authorization.k8s.io"),
)
VERBS = ("get", "list", "create", "update", "delete")


def can_i(verb: str, kind: str, user: str) -> bool:
    resource, _, part = kind.partition("/")  # kubectl takes what follows a slash for a name
    flags = [f"--subresource={part}"] if part else []
    return kubectl("-n", NAMESPACE, "auth", "can-i", verb, resource, user, *flags, check=False).strip() == "yes"


@pytest.mark.parametrize("account", ALLOWED)
def test_rights_of_the_service_accounts(services: None, account: str) -> None:
    user = f"--as=system:serviceaccount:{NAMESPACE}:{account}"
    table = {(verb, kind) for kind in KINDS for verb in VERBS if can_i(verb, kind, user)}
    assert table == ALLOWED[account]


def test_the_namespace_refuses_a_pod_that_asks_for_more(services: None) -> None:
    command = ["-n", NAMESPACE, "run", "greedy", "--image=unic:0.1.0", "--privileged", "--dry-run=server"]
    assert "violates PodSecurity" in kubectl(*command, check=False)


def test_a_launcher_with_its_own_account_can_launch(
    services: None, remove: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """The role is enough for everything the launcher does."""
    token = kubectl("-n", NAMESPACE, "create", "token", "unic-launcher").strip()
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
    config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps(config))
    remove("modest")
    with monkeypatch.context() as patch:
        patch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))
        with pytest.raises(ApiException, match="Forbidden"):
            CoreV1Api(connect()).read_namespaced_secret("unic-s3", NAMESPACE)
        launcher = open_launcher(settings())
        assert launcher.submit(small("modest"), STORE)
        assert launcher.status("modest").phase in {"pending", "running"}
        assert launcher.cancel("modest")
