"""Writes the generated manifests: `python -m k8s.render`. Their sources are `workflows.launch` and namespace/.

base/job.yaml                    config map, network policy and PyTorchJob of the recipe `smoke`, two pods
overlays/rayjob/job.yaml         the same as a RayJob
unic-job.yaml                    base/ in one file
pipeline/unic.yaml               the Kubeflow pipeline, for upload
pipeline/resources.yaml          the same as custom resources, for `kubectl apply`
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

from unic_core.config import RunConfig, load_config
from workflows.launch import LaunchConfig
from workflows.launch.manifest import pytorchjob, rayjob
from workflows.launch.pods import config_map, peers

HERE = Path(__file__).resolve().parent
ROOT = "s3://unic"
GENERATED = "# Written by `python -m k8s.render`; change workflows/launch or k8s/namespace instead.\n"
HEADER = """\
# One distillation as a Kubeflow PyTorchJob: two pods that form a Ray cluster, checkpoints, student and report on S3,
# curves and the registered model in MLflow. It ends as Succeeded, survives the loss of any pod, and does nothing
# when it is applied again.
#
# Needed once per cluster: the Kubeflow training operator (v1.8 or newer), S3, MLflow. Needed once per namespace:
#   kubectl apply -f k8s/namespace/namespace.yaml
#   kubectl -n unic create secret generic unic-s3 \\
#       --from-literal=AWS_ACCESS_KEY_ID=... --from-literal=AWS_SECRET_ACCESS_KEY=...
#   kubectl -n unic create secret generic unic-ray --from-literal=auth_token="$(openssl rand -hex 32)"
#   unic teachers mirror smoke --to s3://unic/teachers       # the teachers' weights, once
#   the addresses in the config map unic-settings below; for S3 and MLflow of your own: kubectl apply -k k8s/services
#
#   kubectl apply -f k8s/unic-job.yaml                        # start, or continue a run that was deleted
#   kubectl -n unic get pytorchjob,pods                       # watch
#   kubectl -n unic logs -f smoke-worker-0                    # the driver's log, across restarts: unic logs smoke
#   kubectl -n unic delete pytorchjob smoke                   # stop; what is on S3 stays and is continued from
#
# Another run: change run.yaml below and every `smoke` in the names, or let `unic launch CONFIG` do it.
# Written by `python -m k8s.render`; change workflows/launch or k8s/namespace instead.
"""


def recipe() -> RunConfig:
    """What the manifests run: seconds of training, on two pods."""
    return load_config("smoke", ["cluster.workers=2"])


def launch(**changes: Any) -> LaunchConfig:
    """Small pods, so that they fit beside S3 and MLflow on one machine."""
    return LaunchConfig(
        cpu="1",
        cpu_request="250m",
        memory="5Gi",
        shared_memory="512Mi",
        scratch="5Gi",
        priority_class="unic-training",
        **changes,
    )


def large() -> tuple[LaunchConfig, RunConfig]:
    """A pod takes a whole node of 8 GPUs; no CPU is shared, no memory overcommitted."""
    run = load_config("unic_l", ["cluster.workers=32", "training.batch=1024", "name=unic-l"])
    sizes = {"memory": "512Gi", "shared_memory": "64Gi", "scratch": "400Gi"}
    return LaunchConfig(workers_per_pod=8, priority_class="unic-training", **sizes), run


def rendered() -> dict[str, str]:
    """Text of every generated file, by its path below k8s/."""
    jobs = {
        "base/job.yaml": (launch(), recipe(), pytorchjob),
        "overlays/rayjob/job.yaml": (launch(backend="rayjob"), recipe(), rayjob),
        "overlays/gpu/job.yaml": (*large(), pytorchjob),
    }
    return {
        path: GENERATED + _yaml([config_map(settings, run), peers(settings, run), render(settings, run, ROOT)])
        for path, (settings, run, render) in jobs.items()
    }


def compiled() -> dict[str, str]:
    """Text of the compiled pipeline's files, by their path below k8s/."""
    from workflows.pipeline.compile import compile_pipeline

    found = {}
    with tempfile.TemporaryDirectory() as directory:
        for path, namespace in (("pipeline/unic.yaml", None), ("pipeline/resources.yaml", "kubeflow")):
            file = Path(directory, path)
            compile_pipeline(file, namespace=namespace)
            found[path] = file.read_text()
    return found


def bundle(directory: Path) -> str:
    """All objects of a kustomization in one text."""
    done = subprocess.run(["kubectl", "kustomize", str(directory)], capture_output=True, text=True, check=True)
    return done.stdout


class _Plain(yaml.SafeDumper):
    """YAML without anchors, and texts of several lines as blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Plain.add_representer(str, _text)


def _yaml(objects: list[dict[str, Any]]) -> str:
    return str(yaml.dump_all(objects, Dumper=_Plain, sort_keys=False, width=120))


def main() -> None:
    """Write all of them."""
    for path, text in (rendered() | compiled()).items():
        (HERE / path).write_text(text)
    (HERE / "unic-job.yaml").write_text(HEADER + bundle(HERE / "base"))


if __name__ == "__main__":
    main()
