"""Steps of the compiled pipeline as pods of a namespace, as Kubeflow makes them, without Kubeflow's own programs.

What Kubeflow's launcher does around a step is done by the pod itself: inputs come as text, outputs go to a file, which
is the pod's termination message. Everything else is read from the compiled pipeline.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Any

import yaml

from k8s.render import HERE, bundle
from tests.k8s.help import IMAGE, kubectl, read_secret, until

NAMESPACE = "unic-pipeline"
ACCOUNT = "unic-pipeline"
OUTPUTS = "/outputs/result.json"


def compiled() -> tuple[dict[str, Any], dict[str, Any]]:
    """Containers and their Kubernetes settings, by executor."""
    ir, platform = yaml.safe_load_all((HERE / "pipeline/unic.yaml").read_text())
    return ir, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def make_namespace() -> None:
    """A namespace that enforces the `restricted` standard, with what is shipped for Kubeflow and nothing else."""
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    _apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
    kubectl(
        "apply",
        "-f",
        "-",
        stdin=bundle(HERE / "overlays/kfp").replace("namespace: kubeflow", f"namespace: {NAMESPACE}"),
    )
    for name, keys in {"unic-s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "unic-ray": ("auth_token",)}.items():
        values = [f"--from-literal={key}={read_secret(name, key)}" for key in keys]
        kubectl("-n", NAMESPACE, "create", "secret", "generic", name, *values, check=False)
    for name, port in (("s3", 8333), ("mlflow", 5000)):  # those servers are for their own namespace only
        app = {"s3": "seaweedfs"}.get(name, name)
        source = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}}}
        rule = {"from": [source], "ports": [{"protocol": "TCP", "port": port}]}
        _apply(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"name": f"{name}-for-{NAMESPACE}", "namespace": "unic"},
                "spec": {
                    "podSelector": {"matchLabels": {"app.kubernetes.io/name": app}},
                    "policyTypes": ["Ingress"],
                    "ingress": [rule],
                },
            }
        )


def remove_namespace() -> None:
    kubectl("delete", "namespace", NAMESPACE, "--wait=true", "--timeout=180s", check=False)
    for name in ("s3", "mlflow"):
        kubectl("-n", "unic", "delete", "networkpolicy", f"{name}-for-{NAMESPACE}", "--ignore-not-found")


def _apply(item: dict[str, Any]) -> None:
    kubectl("apply", "-f", "-", stdin=json.dumps(item))


@dataclass(frozen=True)
class Step:
    """A pod that runs one step."""

    pod: str

    def get(self) -> dict[str, Any]:
        return dict(json.loads(kubectl("-n", NAMESPACE, "get", "pod", self.pod, "-o", "json")))

    def log(self) -> str:
        return kubectl("-n", NAMESPACE, "logs", self.pod, check=False)

    def finish(self, patience_s: float = 600) -> dict[str, Any]:
        """The step's outputs, when it has succeeded."""
        phase = until(self.phase, f"the end of {self.pod}", patience_s)
        assert phase == "Succeeded", self.log()
        (status,) = self.get()["status"]["containerStatuses"]
        return dict(json.loads(status["state"]["terminated"]["message"]))

    def phase(self) -> str | None:
        phase = str(self.get()["status"].get("phase"))
        return phase if phase in {"Succeeded", "Failed"} else None

    def terminate(self) -> None:
        """SIGTERM to the step's Python, as Kubeflow's Terminate does it; the pod itself is not deleted."""
        script = (
            "import os, signal, pathlib\n"
            "for place in pathlib.Path('/proc').glob('[0-9]*'):\n"
            "    command = (place / 'cmdline').read_bytes().split(b'\\0')\n"
            "    if b'kfp.dsl.executor_main' in command: os.kill(int(place.name), signal.SIGTERM)\n"
        )
        subprocess.run(
            ["kubectl", "-n", NAMESPACE, "exec", self.pod, "--", "python", "-c", script], check=False, timeout=60
        )

    def delete(self, *flags: str) -> None:
        kubectl("-n", NAMESPACE, "delete", "pod", self.pod, "--ignore-not-found", *flags)


def run_step(name: str, step: str, inputs: dict[str, Any]) -> Step:
    """Start a step of the compiled pipeline with these values of its parameters."""
    kubectl("-n", NAMESPACE, "delete", "pod", name, "--ignore-not-found", "--wait=true")
    _apply(describe(name, step, inputs))
    return Step(name)


def describe(name: str, step: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """The pod of a step of the compiled pipeline with these values of its parameters."""
    ir, platform = compiled()
    component, executor = ir["components"][f"comp-{step}"], f"exec-{step}"
    container = ir["deploymentSpec"]["executors"][executor]["container"]
    assert inputs.keys() == component["inputDefinitions"]["parameters"].keys()
    outputs = component.get("outputDefinitions", {})
    given = {
        "inputs": {"parameterValues": inputs},
        "outputs": {
            "outputFile": OUTPUTS,
            "parameters": {key: {"outputFile": f"/s3/{key}"} for key in outputs.get("parameters", {})},
            "artifacts": {
                key: {"artifacts": [{"name": key, "type": value["artifactType"], "uri": f"s3://unic/x/{name}/{key}"}]}
                for key, value in outputs.get("artifacts", {}).items()
            },
        },
    }
    arguments = [json.dumps(given) if word == "{{$}}" else word for word in container["args"]]
    return _pod(name, [*container["command"], *arguments], platform[executor])


def _pod(name: str, command: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """The pod as Kubeflow and Argo describe it: their defaults, and what the compiled pipeline asks for."""
    user = {key: v if isinstance(v, bool) else int(v) for key, v in settings["securityContext"].items()}
    fields = {"KFP_POD_NAME": "metadata.name", "KFP_POD_UID": "metadata.uid"}
    fields |= {item["name"]: item["fieldPath"] for item in settings["fieldPathAsEnv"]}
    environment = [{"name": key, "valueFrom": {"fieldRef": {"fieldPath": path}}} for key, path in fields.items()]
    for source, kind in (("secretAsEnv", "secret"), ("configMapAsEnv", "configMap")):
        for item in settings[source]:
            for key in item["keyToEnv"]:
                reference = {"name": item[f"{kind}Name"], "key": key[f"{kind}Key"], "optional": True}
                environment.append({"name": key["envVar"], "valueFrom": {f"{kind}KeyRef": reference}})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"pipeline/runid": "run-of-the-test"}},
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": ACCOUNT,
            "nodeSelector": settings["nodeSelector"]["labels"],
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "main",
                    "image": IMAGE,
                    "command": command,
                    "env": environment,
                    "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "4Gi"}},
                    "securityContext": user
                    | {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "terminationMessagePath": OUTPUTS,
                    "volumeMounts": [{"name": "s3", "mountPath": "/s3"}],  # where kfp writes what belongs on S3
                }
            ],
            "volumes": [{"name": "s3", "emptyDir": {}}],
        },
    }
