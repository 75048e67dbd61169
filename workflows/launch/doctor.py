"""`unic doctor --cluster`: has the cluster what a job needs, and what to do where it has not."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from unic_core.errors import UnicError
from workflows.doctor import Check, State
from workflows.launch.cluster import TIMEOUT, connect, sentences
from workflows.launch.config import LaunchConfig
from workflows.launch.diagnosis import reasons
from workflows.launch.jobs import KINDS
from workflows.launch.pods import GPU, MLFLOW_SECRET, RAY_SECRET, RAY_TOKEN, S3_SECRET, SETTINGS, Object, probe_pod

PATIENCE_S = 180.0
RIGHTS = (
    ("create", "kubeflow.org", "pytorchjobs"),
    ("delete", "kubeflow.org", "pytorchjobs"),
    ("create", "", "configmaps"),
    ("create", "networking.k8s.io", "networkpolicies"),
    ("list", "", "pods"),
    ("get", "", "pods/log"),
)
# Runs in a pod with the settings and keys of a job: what it prints is one JSON list of [what, fine, words].
PROBE = """
import json, os
from unic_core.errors import UnicError
from unic_core.storage import open_store
from workflows import tracking
found = []
def look(what, action):
    try:
        found.append((what, True, action()))
    except UnicError as error:
        found.append((what, False, str(error)))
def storage():
    store = open_store(os.environ["UNIC_PROBE_ROOT"])
    store.put(".doctor", b"unic")
    store.delete([".doctor"])
    return f"{store.uri} can be written"
def server():
    tracking.check_reachable()
    return os.environ.get("MLFLOW_TRACKING_URI", "no server is set").rpartition("@")[2]
look("S3 from a pod", storage)
look("MLflow from a pod", server)
print(json.dumps(found))
"""


def examine_cluster(launch: LaunchConfig, root: str) -> list[Check]:
    """Look at everything that a job in `launch.namespace` with its results under `root` needs."""
    api = connect()
    core = client.CoreV1Api(api)
    with sentences("reach the cluster"):
        version = client.VersionApi(api).get_code(_request_timeout=TIMEOUT).git_version
    checks = [Check("cluster", "ok", f"Kubernetes {version} at {api.configuration.host}")]
    looks: list[Callable[[], Iterator[Check]]] = [
        lambda: _kinds(client.CustomObjectsApi(api), launch),
        lambda: _rights(client.AuthorizationV1Api(api), launch),
        lambda: _objects(core, launch),
        lambda: _gpus(core),
    ]
    checks += [check for look in looks for check in look()]
    if not any(check.state == "broken" for check in checks):
        checks += _from_inside(core, launch, root)
    return checks


def _kinds(custom: Any, launch: LaunchConfig) -> Iterator[Check]:
    for backend, kind in KINDS.items():
        try:
            custom.list_namespaced_custom_object(
                kind.group, kind.version, launch.namespace, kind.plural, limit=1, _request_timeout=TIMEOUT
            )
            yield Check(kind.name, "ok", "the cluster knows it")
        except ApiException as error:
            if error.status == 404:
                state: State = "broken" if backend == launch.backend else "warning"
                yield Check(kind.name, state, "the cluster does not know it", f"install {kind.operator}")
            else:
                yield Check(kind.name, "ok", "the cluster knows it")  # it may be created without being listed


def _rights(authorization: Any, launch: LaunchConfig) -> Iterator[Check]:
    missing = []
    for verb, group, resource in RIGHTS:
        plural, _, part = resource.partition("/")
        attributes = {"namespace": launch.namespace, "verb": verb, "group": group, "resource": plural}
        body = {"spec": {"resourceAttributes": attributes | ({"subresource": part} if part else {})}}
        with sentences("ask for your rights"):
            answer = authorization.create_self_subject_access_review(body, _request_timeout=TIMEOUT)
        if not answer.status.allowed:
            missing.append(f"{verb} {resource}")
    if missing:
        advice = "ask for the role unic-launcher (k8s/namespace/access.yaml)"
        yield Check("rights", "broken", f"you may not {', '.join(missing)}", advice)
    else:
        yield Check("rights", "ok", f"enough to launch jobs in {launch.namespace}")


def _objects(core: Any, launch: LaunchConfig) -> Iterator[Check]:
    """The objects that pods refer to. Who may not read Secrets sees in the probe whether they are there."""
    space, apply = launch.namespace, "kubectl apply -k k8s/namespace"
    create = f"kubectl -n {space} create secret generic"
    looks: list[tuple[str, str, Callable[[], object], State, str]] = [
        ("namespace", space, partial(core.read_namespace, space), "broken", apply),
        (
            "account",
            launch.service_account,
            partial(core.read_namespaced_service_account, launch.service_account, space),
            "broken",
            apply,
        ),
        ("settings", SETTINGS, partial(core.read_namespaced_config_map, SETTINGS, space), "broken", apply),
        (
            "Ray's token",
            RAY_SECRET,
            partial(core.read_namespaced_secret, RAY_SECRET, space),
            "broken",
            f"{create} {RAY_SECRET} --from-literal={RAY_TOKEN}=$(openssl rand -hex 32)",
        ),
        (
            "S3 keys",
            S3_SECRET,
            partial(core.read_namespaced_secret, S3_SECRET, space),
            "warning",
            f"create the Secret {S3_SECRET}, unless pods have a workload identity",
        ),
        (
            "MLflow login",
            MLFLOW_SECRET,
            partial(core.read_namespaced_secret, MLFLOW_SECRET, space),
            "warning",
            f"create the Secret {MLFLOW_SECRET}, where MLflow asks for a password",
        ),
    ]
    for what, name, read, state, advice in looks:
        try:
            read()
            yield Check(what, "ok", name)
        except ApiException as error:
            if error.status == 404:
                yield Check(what, state, f"{name} is not there", advice)
            else:
                yield Check(what, "warning", f"{name} can't be looked at ({error.reason})")


def _gpus(core: Any) -> Iterator[Check]:
    try:
        nodes = core.list_node(_request_timeout=TIMEOUT).items
    except ApiException as error:
        yield Check("GPUs", "warning", f"nodes can't be looked at ({error.reason})")
        return
    counts = [int((node.status.allocatable or {}).get(GPU, 0)) for node in nodes]
    found = f"{sum(counts)} on {sum(map(bool, counts))} of {len(nodes)} node(s)"
    advice = "" if any(counts) else f"install NVIDIA's device plugin where nodes have GPUs; CPU runs need none ({GPU})"
    yield Check("GPUs", "ok" if any(counts) else "warning", found, advice)


def _from_inside(core: Any, launch: LaunchConfig, root: str) -> Iterator[Check]:
    """What a pod with a job's settings, keys and policies sees."""
    pod = probe_pod(launch, ["python", "-c", PROBE], {"UNIC_PROBE_ROOT": root})
    name = pod["metadata"]["name"]
    try:
        with sentences(f"create the pod {name}"):
            core.create_namespaced_pod(launch.namespace, pod, _request_timeout=TIMEOUT)
        try:
            phase, why = _await(core, launch.namespace, name)
            log = "" if why else _log(core, launch.namespace, name)
        finally:
            core.delete_namespaced_pod(name, launch.namespace, grace_period_seconds=0, _request_timeout=TIMEOUT)
    except UnicError as error:
        yield Check("a pod", "warning", str(error), "ask for the right to create pods, to look from inside")
        return
    if phase != "Succeeded":
        found, _, advice = (why or log.strip().rpartition("\n")[2] or f"it ended as {phase}").partition("; ")
        yield Check("a pod", "broken", found, advice)
        return
    yield Check("a pod", "ok", f"{launch.image} runs in {launch.namespace}")
    for what, fine, words in json.loads(log.strip().splitlines()[-1]):
        found, _, advice = words.partition("; ")
        yield Check(what, "ok" if fine else "broken", found, "" if fine else advice)


def _log(core: Any, namespace: str, name: str) -> str:
    """The pod's log as it is: the client would read what looks like JSON and hand back something else."""
    with sentences(f"read the log of {name}"):
        stream = core.read_namespaced_pod_log(name, namespace, _preload_content=False, _request_timeout=TIMEOUT)
    return str(stream.data.decode())


def _await(core: Any, namespace: str, name: str) -> tuple[str, str]:
    """Phase of the pod when it has ended, and why it did not; the reason may be empty."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with sentences(f"look at the pod {name}"):
            found = core.read_namespaced_pod(name, namespace, _request_timeout=TIMEOUT)
        pod: Object = core.api_client.sanitize_for_serialization(found)
        phase = pod["status"].get("phase", "Pending")
        said = reasons([pod], [])
        if phase in {"Succeeded", "Failed"} or said:
            return phase, said[0] if said else ""
        if time.monotonic() > deadline:
            return phase, f"it did not end within {PATIENCE_S:.0f} s"
        time.sleep(1)
