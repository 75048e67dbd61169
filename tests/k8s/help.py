"""What the cluster tests share: kubectl, waiting, small runs on small pods."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unic_core.config import RunConfig, load_config
from unic_core.storage import open_store
from workflows.launch import LaunchConfig

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "unic"
IMAGE = os.environ.get("UNIC_IMAGE", "unic:0.1.0")
STORE = "s3://unic"


def kubectl(*arguments: str, stdin: str | None = None, check: bool = True) -> str:
    """Standard output of kubectl; AssertionError with its words when it fails."""
    done = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
    return done.stdout if check else done.stdout + done.stderr


def get(kind: str, name: str = "", **options: str) -> Any:
    """Objects as plain data."""
    flags = [f"--{key}={value}" for key, value in options.items()]
    return json.loads(kubectl("-n", NAMESPACE, "get", kind, *([name] if name else []), *flags, "-o", "json"))


def until(ready: Callable[[], Any], what: str, patience_s: float = 300) -> Any:
    """The first true value of `ready()`."""
    deadline = time.monotonic() + patience_s
    while True:
        if value := ready():
            return value
        assert time.monotonic() < deadline, f"{what} did not happen within {patience_s:.0f} s"
        time.sleep(0.5)


def wipe(name: str, namespace: str = NAMESPACE) -> None:
    """Remove a job, and whatever of its run lies on S3."""
    for kind in ("pytorchjob", "rayjob"):
        kubectl("-n", namespace, "delete", kind, name, "--ignore-not-found", "--wait=true", check=False)
    store = open_store(f"{STORE}/runs/{name}")
    store.delete(store.list())


@contextmanager
def forwarded(service: str, port: int) -> Iterator[str]:
    """The address on this machine of a service's port, for servers that want to be called by a name they know."""
    command = ["kubectl", "-n", NAMESPACE, "port-forward", f"service/{service}", f":{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()  # Forwarding from 127.0.0.1:40123 -> 5000
            yield f"http://localhost:{line.split()[2].rpartition(':')[2]}"
        finally:
            process.terminate()


def small(name: str, *overrides: str) -> RunConfig:
    """A run of half a minute on two pods, with the least evaluation."""
    short = (
        "cluster.workers=2",
        "evaluation.random_student=false",
        "evaluation.c_values=[1.0]",
        "evaluation.knn_k=[10]",
    )
    return load_config("smoke", [f"name={name}", *short, *overrides])


def settings(**changes: Any) -> LaunchConfig:
    """Pods that fit beside the services on one machine."""
    sizes = {"cpu": "1", "cpu_request": "100m", "memory": "5Gi", "shared_memory": "512Mi", "scratch": "5Gi"}
    return LaunchConfig(**{"namespace": NAMESPACE, "image": IMAGE, **sizes, **changes})


def read_secret(name: str, key: str) -> str:
    return base64.b64decode(get("secret", name)["data"][key]).decode()


def address(service: str) -> str:
    """The service's own address: this machine is a node of the cluster, or reaches it like one."""
    return str(get("service", service)["spec"]["clusterIP"])
