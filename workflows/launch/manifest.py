"""The Kubernetes objects of a job, as plain data: a PyTorchJob whose pods form a Ray cluster, or a RayJob.

This is the only place that describes them. `unic launch` submits what these functions return, and
`python -m k8s.render` writes the same into `k8s/`.
"""

from __future__ import annotations

import shlex

from unic_core.config import RunConfig
from workflows.launch.config import LaunchConfig, job_name
from workflows.launch.node import DRAIN_S, HEAD_PORT, METRICS_PORT, NODE_PORT
from workflows.launch.pods import (
    CONFIG_FILE,
    RAY_SECRET,
    RAY_TOKEN,
    Object,
    container,
    metadata,
    template,
)

DASHBOARD_PORT = 8265
RAY_VERSION = "2.60.0"
PATIENCE_S = 600  # how long a stage waits for S3 or MLflow that went away


def pytorchjob(launch: LaunchConfig, run: RunConfig, root: str) -> Object:
    """Equal pods that form a Ray cluster; pod 0 is its head and runs the driver too.

    All are `Worker` replicas: to workers of a job with a `Master` the operator adds an init container that a
    namespace with the `restricted` pod security standard refuses. The elastic policy makes the job succeed when
    pod 0 does. The restart policy `ExitCode` makes the operator replace pods that were killed (codes from 128)
    and end the job for a mistake (code 2), which no restart would mend.
    """
    name, pods = job_name(run), launch.pods(run)
    policy: Object = {
        "cleanPodPolicy": "Running",
        "activeDeadlineSeconds": launch.deadline_s,
        "ttlSecondsAfterFinished": launch.keep_s,
    }
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": metadata(launch, run, name),
        "spec": {
            "nprocPerNode": "1",
            "runPolicy": policy | ({"suspend": True} if launch.queue else {}),
            "elasticPolicy": {"minReplicas": 1, "maxReplicas": pods},
            "pytorchReplicaSpecs": {
                "Worker": {
                    "replicas": pods,
                    "restartPolicy": "ExitCode",
                    "template": template(launch, run, _node(launch, run, root)),
                }
            },
        },
    }


def _node(launch: LaunchConfig, run: RunConfig, root: str) -> Object:
    """The container that is one node of the Ray cluster; `workflows.launch.node` sees to it."""
    common = container(launch, run)
    index = {"fieldRef": {"fieldPath": "metadata.labels['training.kubeflow.org/replica-index']"}}
    return {
        "name": "pytorch",  # the operator asks for this name
        "command": ["python", "-m", "workflows.launch.node", "--"],
        "args": driver(launch, root),
        "ports": _ports(metrics=METRICS_PORT),
        "readinessProbe": {"tcpSocket": {"port": NODE_PORT}, "periodSeconds": 10},
        **common,
        "env": [
            *common["env"],
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "UNIC_NODE_INDEX", "valueFrom": index},
            {"name": "UNIC_NODE_CPUS", "value": str(launch.cpus(run))},
            {"name": "UNIC_HEAD", "value": f"{job_name(run)}-worker-0"},
            {"name": "RAY_AUTH_MODE", "value": "token"},
            {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": {"name": RAY_SECRET, "key": RAY_TOKEN}}},
        ],
    }


def rayjob(launch: LaunchConfig, run: RunConfig, root: str) -> Object:
    """The same pods under KubeRay: the head runs the driver, and a small pod submits it and shows its log.

    A failed job is tried again on a new cluster, which continues at the run's last checkpoint.
    """
    common = container(launch, run)
    small = {"cpu": "500m", "memory": "1Gi"}
    submitter = template(
        launch,
        run,
        {**common, "name": "ray-job-submitter", "resources": {"requests": {**small, "cpu": "50m"}, "limits": small}},
    )
    submitter["spec"]["restartPolicy"] = "Never"
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata(launch, run, job_name(run)),
        "spec": {
            "entrypoint": shlex.join(driver(launch, root)),
            "submissionMode": "K8sJobMode",
            "backoffLimit": 2,
            "activeDeadlineSeconds": launch.deadline_s,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 60,
            "suspend": bool(launch.queue),
            "submitterPodTemplate": submitter,
            "rayClusterSpec": _ray_cluster(launch, run, common),
        },
    }


def _ray_cluster(launch: LaunchConfig, run: RunConfig, common: Object) -> Object:
    """The head and its workers; a pod that is drained saves before it goes."""
    start = {
        "num-cpus": str(launch.cpus(run)),
        "object-store-memory": str(200 * 2**20),
        "metrics-export-port": str(METRICS_PORT),
        "disable-usage-stats": "true",
    }
    goodbye = {"preStop": {"exec": {"command": ["python", "-m", "workflows.launch.leave", f"{DRAIN_S:.0f}"]}}}
    ports = {"gcs-server": HEAD_PORT, "dashboard": DASHBOARD_PORT, "metrics": METRICS_PORT}
    head = {"name": "ray-head", **common, "lifecycle": goodbye, "ports": _ports(**ports)}
    worker = {"name": "ray-worker", **common, "ports": _ports(metrics=METRICS_PORT), "lifecycle": goodbye}
    workers = launch.pods(run) - 1
    group = {
        "groupName": "workers",
        "replicas": workers,
        "minReplicas": workers,
        "maxReplicas": workers,
        "rayStartParams": start,
        "template": template(launch, run, worker),
    }
    return {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token", "secretName": RAY_SECRET},
        "headGroupSpec": {
            # the operator and the submitter talk to the dashboard; token and network policy keep others out
            "rayStartParams": start | {"dashboard-host": "0.0.0.0"},  # noqa: S104
            "template": template(launch, run, head),
        },
        **({"workerGroupSpecs": [group]} if workers else {}),
    }


def _ports(**numbers: int) -> list[Object]:
    return [{"name": name, "containerPort": number, "protocol": "TCP"} for name, number in numbers.items()]


def driver(launch: LaunchConfig, root: str) -> list[str]:
    """What the driver runs: every stage, or those up to the student."""
    command = ["unic", "run", CONFIG_FILE, "--root", root, "--patience", str(PATIENCE_S)]
    return command if launch.stage == "run" else [*command, "--until", "distill"]
