"""A namespace with S3, MLflow and all policies in the cluster of the current kubeconfig, made from k8s/."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.k8s.disturb import Watch, longer, weights
from tests.k8s.help import NAMESPACE, ROOT, STORE, address, kubectl, read_secret, settings, wipe
from workflows.launch import Launcher, open_launcher


@pytest.fixture(scope="session")
def cluster() -> None:
    """Skips where the kubeconfig leads to no cluster with the training operator."""
    if not Path(os.environ.get("KUBECONFIG", Path.home() / ".kube/config")).exists():
        pytest.skip("no kubeconfig")
    answer = kubectl("get", "--raw", "/readyz", "--request-timeout=5s", check=False)
    if answer.strip() != "ok":
        pytest.skip(f"the cluster does not answer: {answer.strip()[:200]}")
    if "pytorchjobs.kubeflow.org" not in kubectl("get", "crd", "-o", "name"):
        pytest.skip("the cluster has no training operator")


@pytest.fixture(scope="session")
def kuberay(cluster: None) -> None:
    """Skips where the cluster has no KubeRay."""
    if "rayjobs.ray.io" not in kubectl("get", "crd", "-o", "name"):
        pytest.skip("the cluster has no KubeRay")


@pytest.fixture(scope="session")
def services(cluster: None) -> Iterator[None]:
    """The namespace with S3, MLflow and the mirrored teachers; the environment leads this process to them."""
    kubectl("apply", "-f", str(ROOT / "k8s/namespace/namespace.yaml"))
    _secret("unic-s3", AWS_ACCESS_KEY_ID="unic", AWS_SECRET_ACCESS_KEY=secrets.token_hex(20))
    _secret("unic-ray", auth_token=secrets.token_hex(32))
    _volumes("s3-data", "mlflow-data")
    kubectl("-n", NAMESPACE, "delete", "job", "teachers", "--ignore-not-found")  # a Job cannot be changed
    kubectl("apply", "-k", str(ROOT / "k8s/services"))
    for name in ("s3", "mlflow"):
        kubectl("-n", NAMESPACE, "rollout", "status", f"deployment/{name}", "--timeout=300s")
    kubectl("-n", NAMESPACE, "wait", "--for=condition=complete", "job/teachers", "--timeout=300s")
    for name in ("access", "network", "scheduling", "settings"):  # the base without its job
        kubectl("-n", NAMESPACE, "apply", "-f", str(ROOT / f"k8s/namespace/{name}.yaml"))
    with pytest.MonkeyPatch.context() as patch:
        for key in [key for key in os.environ if key.startswith(("AWS_", "MLFLOW_TRACKING", "UNIC_"))]:
            patch.delenv(key)
        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://{address('s3')}:8333")
        patch.setenv("AWS_ACCESS_KEY_ID", "unic")
        patch.setenv("AWS_SECRET_ACCESS_KEY", read_secret("unic-s3", "AWS_SECRET_ACCESS_KEY"))
        yield


@pytest.fixture(scope="session")
def undisturbed(services: None) -> str:
    """The weights that every run of `longer` must end with."""
    wipe("calm")
    launcher = open_launcher(settings())
    launcher.submit(longer("calm"), STORE)
    Watch(launcher, "calm").run()
    found = weights("calm")
    wipe("calm")
    return found


@pytest.fixture
def launcher(services: None) -> Launcher:
    return open_launcher(settings())


@pytest.fixture
def remove() -> Iterator[Callable[[str], None]]:
    """Registers jobs, and whatever of their runs lies on S3, for removal before and after the test."""
    names: list[str] = []

    def register(name: str) -> None:
        wipe(name)
        names.append(name)

    yield register
    for name in names:
        wipe(name)


def _secret(name: str, **values: str) -> None:
    """Made once: servers that run keep their keys."""
    flags = [f"--from-literal={key}={value}" for key, value in values.items()]
    kubectl("-n", NAMESPACE, "create", "secret", "generic", name, *flags, check=False)


def _volumes(*claims: str) -> None:
    """A directory of this machine for each claim, where the cluster makes no volumes by itself."""
    if json.loads(kubectl("get", "storageclass", "-o", "json"))["items"]:
        return
    for claim in claims:
        place = Path("/var/tmp/unic-cluster-test", claim)  # noqa: S108
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(0o777)
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"unic-{claim}"},
            "spec": {
                "capacity": {"storage": "20Gi"},
                "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"namespace": NAMESPACE, "name": claim},
                "hostPath": {"path": str(place)},
            },
        }
        kubectl("create", "-f", "-", stdin=json.dumps(volume), check=False)
