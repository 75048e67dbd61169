"""Scans everything that is deployed for insecure settings: `make scan`. Exit code 1 when there is a finding.

Scanners know no PyTorchJob: its pod templates, and those of a RayJob, are scanned as the pods they become.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from k8s.render import HERE, bundle

OVERLAYS = ("dev", "gpu", "kueue", "rayjob")  # each of them is everything that a job needs
KFP = "kfp"  # what the pipeline's steps need beside Kubeflow
CUSTOM = frozenset({"PyTorchJob", "RayJob", "PodMonitor"})
CHECKOV = "checkov==3.3.30"  # in an environment of its own: it pins what we need in other versions


def objects(overlay: str) -> list[dict[str, Any]]:
    """Everything that an overlay deploys."""
    return [item for item in yaml.safe_load_all(bundle(HERE / "overlays" / overlay)) if item]


def templates(node: Any) -> Iterator[dict[str, Any]]:
    """Every pod template below `node`."""
    if isinstance(node, dict):
        if "containers" in node.get("spec", {}):
            yield node
        for value in node.values():
            yield from templates(value)
    elif isinstance(node, list):
        for value in node:
            yield from templates(value)


def as_pods(item: dict[str, Any]) -> list[dict[str, Any]]:
    """The pods that a custom resource becomes."""
    place = {"namespace": item["metadata"].get("namespace", "default")}
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"{item['metadata']['name']}-{index}"} | place | template.get("metadata", {}),
            "spec": template["spec"],
        }
        for index, template in enumerate(templates(item))
    ]


def main() -> int:
    """Render, scan, return the scanner's exit code."""
    scanner = ["checkov"] if shutil.which("checkov") else ["uv", "tool", "run", CHECKOV]
    with tempfile.TemporaryDirectory() as directory:
        for overlay in (*OVERLAYS, KFP):
            found = objects(overlay)
            pods = [pod for item in found if item["kind"] in CUSTOM for pod in as_pods(item)]
            Path(directory, f"{overlay}.yaml").write_text(yaml.safe_dump_all([*found, *pods]))
        shutil.copy(HERE.parent / "docker/Dockerfile", directory)
        command = [*scanner, "--config-file", str(HERE / "checkov.yaml"), "--directory", directory]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
