"""What every pod of a job has in common, under either operator: environment, volumes, security, resources."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

from unic_core import __version__
from unic_core.config import RunConfig, dump_config
from workflows.launch.config import LaunchConfig, job_name

Object = dict[str, Any]

CONFIG_DIGEST = "unic.dev/config-sha256"
CONFIG_FILE = "/etc/unic/run.yaml"
TERMINATION_LOG = "/dev/termination-log"
GPU = "nvidia.com/gpu"
USER = 10001
GRACE_S = 90  # announce a drain, save a checkpoint, leave

SETTINGS, S3_SECRET, MLFLOW_SECRET, RAY_SECRET = "unic-settings", "unic-s3", "unic-mlflow", "unic-ray"
RAY_TOKEN = "auth_token"  # noqa: S105 (the key that KubeRay reads, not its value)

POD_SECURITY: Object = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Object = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
ENVIRONMENT: list[Object] = [
    {"configMapRef": {"name": SETTINGS}},
    {"secretRef": {"name": S3_SECRET, "optional": True}},  # optional: a workload identity does as well
    {"secretRef": {"name": MLFLOW_SECRET, "optional": True}},
]


def config_map(launch: LaunchConfig, run: RunConfig) -> Object:
    """The run's config, as the command line reads it."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(launch, run, f"{job_name(run)}-config"),
        "data": {"run.yaml": dump_config(run)},
    }


def peers(launch: LaunchConfig, run: RunConfig) -> Object:
    """The network policy of a job: its pods talk to each other on every port, and nobody else to them.

    Every port, because collectives listen where the system lets them. What else the pods may reach, a policy of the
    namespace says (k8s/namespace/network.yaml).
    """
    members = {
        "podSelector": {"matchLabels": {"app.kubernetes.io/instance": labels(run)["app.kubernetes.io/instance"]}}
    }
    operator = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay"}}}
    others = [{"from": [operator], "ports": [{"protocol": "TCP", "port": 8265}]}] if launch.backend == "rayjob" else []
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(launch, run, f"{job_name(run)}-peers"),
        "spec": {
            "podSelector": members["podSelector"],
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [members]}, *others],
            "egress": [{"to": [members]}],
        },
    }


def digest(run: RunConfig) -> str:
    """Changes when the config does."""
    return hashlib.sha256(dump_config(run).encode()).hexdigest()


def labels(run: RunConfig) -> dict[str, str]:
    """On every object of the job; `instance` is what the network policies tell jobs apart by."""
    return {
        "app.kubernetes.io/name": "unic",
        "app.kubernetes.io/instance": f"unic-{job_name(run)}",
        "app.kubernetes.io/component": "training",
        "app.kubernetes.io/part-of": "unic",
        "app.kubernetes.io/version": __version__,
    }


def metadata(launch: LaunchConfig, run: RunConfig, name: str) -> Object:
    found: Object = {
        "name": name,
        "namespace": launch.namespace,
        "labels": labels(run) | ({"kueue.x-k8s.io/queue-name": launch.queue} if launch.queue else {}),
        "annotations": {CONFIG_DIGEST: digest(run)},
    }
    if launch.owner is not None:
        owner = {"apiVersion": "v1", "kind": "Pod", "name": launch.owner.name, "uid": launch.owner.uid}
        found["ownerReferences"] = [owner]
    return found


def template(launch: LaunchConfig, run: RunConfig, container: Object) -> Object:
    """The pod around one container. It has no access to the Kubernetes API."""
    spec: Object = {
        "serviceAccountName": launch.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": POD_SECURITY,
        "containers": [container],
        "volumes": [
            {"name": "config", "configMap": {"name": f"{job_name(run)}-config"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": launch.scratch}},
            {"name": "cache", "emptyDir": {"sizeLimit": launch.scratch}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": launch.shared_memory}},
        ],
    }
    if launch.priority_class:
        spec["priorityClassName"] = launch.priority_class
    if launch.gpus(run):
        spec["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    annotations = {"sidecar.istio.io/inject": "false"}  # a sidecar breaks Ray's connections and outlives the job
    return {"metadata": {"labels": labels(run), "annotations": annotations}, "spec": spec}


def container(launch: LaunchConfig, run: RunConfig) -> Object:
    """What all containers of a job have in common, under either operator."""
    limits: Object = {"cpu": launch.cpu or str(launch.cpus(run)), "memory": launch.memory}
    requests: Object = {"cpu": launch.cpu_request or limits["cpu"], "memory": launch.memory}
    if launch.gpus(run):
        limits[GPU] = requests[GPU] = launch.gpus(run)
    return {
        "image": launch.image,
        "imagePullPolicy": "IfNotPresent",
        "env": [
            {"name": "UNIC_TERMINATION_LOG", "value": TERMINATION_LOG},
            # a replaced driver takes the run's lease over at once
            {"name": "UNIC_JOB", "value": f"{launch.namespace}/{job_name(run)}"},
            *({"name": name, "value": value} for name, value in launch.environment.items()),
        ],
        "envFrom": ENVIRONMENT,
        "resources": {"requests": requests, "limits": limits},
        "securityContext": CONTAINER_SECURITY,
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/unic", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 (a mount point)
            {"name": "cache", "mountPath": "/cache"},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
        ],
    }


def probe_pod(launch: LaunchConfig, command: list[str], environment: dict[str, str]) -> Object:
    """A small pod that sees what the pods of a job see: their settings, keys, account and network policies."""
    mounts = [{"name": "tmp", "mountPath": "/tmp"}, {"name": "cache", "mountPath": "/cache"}]  # noqa: S108
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"unic-doctor-{secrets.token_hex(3)}",
            "labels": {"app.kubernetes.io/name": "unic", "app.kubernetes.io/part-of": "unic"},
        },
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": launch.service_account,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": POD_SECURITY,
            "containers": [
                {
                    "name": "probe",
                    "image": launch.image,
                    "command": command,
                    "env": [{"name": key, "value": value} for key, value in environment.items()],
                    "envFrom": ENVIRONMENT,
                    "resources": {
                        "requests": {"cpu": "50m", "memory": "512Mi"},
                        "limits": {"cpu": "1", "memory": "1Gi"},
                    },
                    "securityContext": CONTAINER_SECURITY,
                    "volumeMounts": mounts,
                }
            ],
            "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "cache", "emptyDir": {}}],
        },
    }
