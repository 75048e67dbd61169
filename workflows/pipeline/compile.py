"""The pipeline as files: YAML for upload, or custom resources for `kubectl apply`."""

from __future__ import annotations

from pathlib import Path

from kfp import compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions

from unic_core import __version__
from unic_core.errors import UnicError
from workflows.launch.config import IMAGE
from workflows.pipeline.definition import unic_pipeline
from workflows.request import read_request

NAME = "unic"


def compile_pipeline(output: Path, image: str = IMAGE, namespace: str | None = None) -> None:
    """Write the pipeline: its description for Kubeflow and, as a second document, what its pods need of Kubernetes.

    Args:
        output: the file; must end in .yaml or .yml.
        image: default of the pipeline's `image` parameter.
        namespace: write the custom resources `Pipeline` and `PipelineVersion` of this namespace instead.

    Raises:
        UnicError: the name of the file or of the image is wrong, or the file can't be written.
    """
    if output.suffix not in {".yaml", ".yml"}:
        raise UnicError(f"cannot write the pipeline to {output}: the name must end in .yaml")
    read_request({"image": image})
    options = None if namespace is None else _resources(namespace)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        compiler.Compiler().compile(
            unic_pipeline,
            str(output),
            pipeline_parameters={"image": image},
            kubernetes_manifest_format=options is not None,
            kubernetes_manifest_options=options,
        )
    except OSError as error:
        raise UnicError(f"cannot write {output}: {error.strerror}; choose another place") from error


def _resources(namespace: str) -> KubernetesManifestOptions:
    """A version of the pipeline never changes: it is named after that of the code."""
    return KubernetesManifestOptions(
        pipeline_name=NAME,
        pipeline_version_name=f"{NAME}-{__version__.replace('+', '-')}",
        namespace=namespace,
        include_pipeline_manifest=True,
    )
