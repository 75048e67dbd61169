"""PyTorchJobs and RayJobs through the Kubernetes API: submit, look, cancel.

The generic client for custom objects serves both kinds the same way. The training SDK's own client takes no plain
data, hides the server's answers in RuntimeErrors and cannot follow a driver whose pod was replaced.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from unic_core.config import RunConfig
from unic_core.errors import UnicError
from workflows.launch import diagnosis
from workflows.launch.cluster import TIMEOUT, connect, sentences
from workflows.launch.config import LaunchConfig, Phase, Status, job_name
from workflows.launch.follow import wait
from workflows.launch.manifest import pytorchjob, rayjob
from workflows.launch.pods import CONFIG_DIGEST, Object, config_map, digest, peers

OPERATOR_S = 15  # an operator that runs has looked at a new job by then


@dataclass(frozen=True)
class Kind:
    """One kind of job: where the API serves it, how it is made, what its status means, which pod has the driver."""

    name: str
    group: str
    version: str
    plural: str
    operator: str
    render: Callable[[LaunchConfig, RunConfig, str], Object]
    phase: Callable[[Object], tuple[Phase, str]]
    pods: str
    """Selects all pods of the job {name}."""
    driver: str
    """Selects, of these, the pod with the driver."""
    container: str


def _condition(job: Object) -> tuple[Phase, str]:
    """Phase and message of a PyTorchJob."""
    phases: dict[str, Phase] = {"Failed": "failed", "Succeeded": "succeeded", "Running": "running"}
    current = {c["type"]: c for c in job.get("status", {}).get("conditions") or () if c["status"] == "True"}
    for name, phase in phases.items():
        if name in current:
            return phase, current[name].get("message", "")
    return "pending", ""


def _deployment(job: Object) -> tuple[Phase, str]:
    """Phase and message of a RayJob."""
    phases: dict[str, Phase] = {
        "Complete": "succeeded",
        "Failed": "failed",
        "ValidationFailed": "failed",
        "Running": "running",
    }
    status = job.get("status", {})
    return phases.get(status.get("jobDeploymentStatus", ""), "pending"), status.get("message", "")


PYTORCHJOB = Kind(
    name="PyTorchJob",
    group="kubeflow.org",
    version="v1",
    plural="pytorchjobs",
    operator="the Kubeflow training operator",
    render=pytorchjob,
    phase=_condition,
    pods="training.kubeflow.org/job-name={name}",
    driver="training.kubeflow.org/replica-index=0",
    container="pytorch",
)

RAYJOB = Kind(
    name="RayJob",
    group="ray.io",
    version="v1",
    plural="rayjobs",
    operator="the KubeRay operator",
    render=rayjob,
    phase=_deployment,
    pods="app.kubernetes.io/instance=unic-{name}",
    driver="job-name={name}",
    container="ray-job-submitter",
)

KINDS = {"pytorchjob": PYTORCHJOB, "rayjob": RAYJOB}


class ClusterJobs:
    """The jobs of one kind in one namespace."""

    def __init__(self, kind: Kind, launch: LaunchConfig) -> None:
        self.kind, self.launch, self.namespace = kind, launch, launch.namespace
        api = connect()
        self._objects, self._core = client.CustomObjectsApi(api), client.CoreV1Api(api)
        self._network = client.NetworkingV1Api(api)
        self.place = {"group": kind.group, "version": kind.version, "namespace": self.namespace, "plural": kind.plural}

    def submit(self, run: RunConfig, root: str) -> bool:
        """Create the job of this run, or find it; True when it was created.

        A job of that name that failed is replaced: the new one continues at the run's last checkpoint.

        Raises:
            UnicError: the cluster refuses; or there is a job of that name with another config.
        """
        name = job_name(run)
        created = False
        while True:
            job = self._create(self.kind.render(self.launch, run, root))
            if job is not None:
                created = True
                break
            job = self._get(name)
            if job is None:
                continue  # it was deleted just now
            if "deletionTimestamp" not in job["metadata"]:
                known = job["metadata"].get("annotations", {}).get(CONFIG_DIGEST)
                if known != digest(run):
                    raise UnicError(
                        f"there is a {self.kind.name} {name} in {self.namespace} with another config; choose another "
                        f"name, or end it first with `unic cancel {name}`"
                    )
                if self.kind.phase(job)[0] != "failed":
                    break
                self._delete(name, "Foreground")
            self._await_absence(name)
        self._ensure_companions(run, job)
        return created

    def status(self, name: str) -> Status:
        """Where the job stands, and why it does not go on."""
        job = self._get(name)
        if job is None:
            return Status("absent")
        phase, message = self.kind.phase(job)
        pods = self.pods(name)
        if phase == "failed":
            words = next(filter(None, (diagnosis.last_words(pod) for pod in pods)), "")
            return Status(phase, tuple(filter(None, [words.removeprefix("error: ") or message])))
        if phase == "succeeded":
            return Status(phase)
        found = diagnosis.reasons(pods, self._events([name, *(pod["metadata"]["name"] for pod in pods)]))
        return Status(phase, found or self._idle(job))

    def wait(self, name: str, say: Callable[[str], None], note: Callable[[str], None]) -> Status:
        """Return when the job has ended; `say` gets the lines of its driver meanwhile, `note` why it waits."""
        return wait(self, name, say, note)

    def cancel(self, name: str) -> bool:
        """Delete the job; its pods save a checkpoint first. False when there is none."""
        return self._delete(name, "Background")

    def pods(self, name: str) -> list[Object]:
        """The pods of the job, as the API server describes them."""
        return self._pods(self.kind.pods.format(name=name))

    def driver(self, name: str) -> Object | None:
        """The newest pod with the driver, when its container has started."""
        pods = self._pods(f"{self.kind.pods},{self.kind.driver}".format(name=name))
        started = [pod for pod in pods if _has_started(pod, self.kind.container)]
        return max(started, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)

    def open_log(self, pod: str, since_s: int | None, silence_s: float, follow: bool) -> Any:
        """The driver's log as a stream of bytes with timestamps; it raises after `silence_s` without a line."""
        return self._core.read_namespaced_pod_log(
            pod,
            self.namespace,
            container=self.kind.container,
            follow=follow,
            timestamps=True,
            **({} if since_s is None else {"since_seconds": since_s}),
            _preload_content=False,
            _request_timeout=(TIMEOUT[0], silence_s),
        )

    def _create(self, job: Object) -> Object | None:
        """The job as created; None when there is one of that name."""
        try:
            with sentences(f"create the job {job['metadata']['name']}"):
                made = self._objects.create_namespaced_custom_object(**self.place, body=job, _request_timeout=TIMEOUT)
        except UnicError as error:
            if _code(error) == 409:
                return None
            if _code(error) == 404:
                raise self._missing() from error
            raise
        return dict(made)

    def _missing(self) -> UnicError:
        """Why the API server answered 404: the kind or the namespace is not there."""
        try:
            with sentences(f"read the namespace {self.namespace}"):
                self._core.read_namespace(self.namespace, _request_timeout=TIMEOUT)
        except UnicError as error:
            if _code(error) == 404:
                return UnicError(
                    f"there is no namespace {self.namespace}; create it with: kubectl apply -k k8s/namespace"
                )
        return UnicError(
            f"the cluster knows no {self.kind.name}; install {self.kind.operator}, or choose another --backend"
        )

    def _get(self, name: str) -> Object | None:
        try:
            with sentences(f"read the job {name}"):
                found = self._objects.get_namespaced_custom_object(**self.place, name=name, _request_timeout=TIMEOUT)
        except UnicError as error:
            if _code(error) == 404:
                return None
            raise
        return dict(found)

    def _delete(self, name: str, propagation: str) -> bool:
        try:
            with sentences(f"delete the job {name}"):
                self._objects.delete_namespaced_custom_object(
                    **self.place, name=name, propagation_policy=propagation, _request_timeout=TIMEOUT
                )
        except UnicError as error:
            if _code(error) == 404:
                return False
            raise
        return True

    def _await_absence(self, name: str, patience_s: float = 180.0) -> None:
        deadline = time.monotonic() + patience_s
        while self._get(name) is not None:
            if time.monotonic() > deadline:
                raise UnicError(f"the former job {name} is still being deleted; try again in a minute")
            time.sleep(1)

    def _ensure_companions(self, run: RunConfig, job: Object) -> None:
        """The config map and the network policy, owned by the job, so that they go when it goes. The pods wait."""
        owner = {key: job[key] for key in ("apiVersion", "kind")} | {k: job["metadata"][k] for k in ("name", "uid")}
        core, network = self._core, self._network
        for body, create, replace in (
            (config_map(self.launch, run), core.create_namespaced_config_map, core.replace_namespaced_config_map),
            (
                peers(self.launch, run),
                network.create_namespaced_network_policy,
                network.replace_namespaced_network_policy,
            ),
        ):
            name = body["metadata"]["name"]
            body["metadata"]["ownerReferences"] = [owner]
            try:
                with sentences(f"create the {body['kind']} {name}"):
                    create(self.namespace, body, _request_timeout=TIMEOUT)
            except UnicError as error:
                if _code(error) != 409:
                    raise
                with sentences(f"replace the {body['kind']} {name}"):
                    replace(name, self.namespace, body, _request_timeout=TIMEOUT)

    def _pods(self, selector: str) -> list[Object]:
        with sentences("list the job's pods"):
            found = self._core.list_namespaced_pod(self.namespace, label_selector=selector, _request_timeout=TIMEOUT)
        return [dict(pod) for pod in self._core.api_client.sanitize_for_serialization(found)["items"]]

    def _events(self, names: list[str]) -> list[Object]:
        with sentences("read the job's events"):
            found = self._core.list_namespaced_event(self.namespace, _request_timeout=TIMEOUT)
        events = self._core.api_client.sanitize_for_serialization(found)["items"]
        return [dict(event) for event in events if event["involvedObject"].get("name") in names]

    def _idle(self, job: Object) -> tuple[str, ...]:
        """Why a job without pods has none: nobody has looked at it, or it waits in a queue."""
        if job["spec"].get("runPolicy", job["spec"]).get("suspend"):
            queue = job["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
            return (f"it waits in the queue {queue}" if queue else "it is suspended; set suspend to false to start it",)
        age = datetime.now(UTC) - datetime.fromisoformat(job["metadata"]["creationTimestamp"])
        if not job.get("status") and age.total_seconds() > OPERATOR_S:
            return (f"{self.kind.operator} has not looked at the job yet; if this stays so, see whether it runs",)
        return ()


def _code(error: UnicError) -> int | None:
    """The HTTP status behind a sentence."""
    return error.__cause__.status if isinstance(error.__cause__, ApiException) else None


def _has_started(pod: Object, container: str) -> bool:
    states = pod.get("status", {}).get("containerStatuses") or ()
    return any(s["name"] == container and {"running", "terminated"} & s.get("state", {}).keys() for s in states)
