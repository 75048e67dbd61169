"""The Kubeflow pipeline: prepare -> distill -> one probe per data set, in parallel -> report.

The components only hand over to `workflows.components`. This file has no `from __future__ import annotations`:
Kubeflow reads the annotations as types and ships the functions' source as text.

Two shapes here are deliberate. The fan-out is a pipeline of its own, fed with parameters: the local runner replaces
what comes from an earlier task inside a loop by the loop's item, but passes a sub-pipeline's inputs correctly. And
every component takes `code_version`: Kubeflow caches by inputs and image name, and knows nothing of the code inside.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from kfp import compiler, dsl, kubernetes
from kfp.dsl.pipeline_channel import PipelineChannel

from unic_core import __version__
from unic_core.errors import UnicError

IMAGE = f"unic:{__version__}"
USER = 1000
GPU = "nvidia.com/gpu"
SHARED_MEMORY = "/dev/shm"  # noqa: S108 (the mount point, nothing temporary is written by name)
SECRET = {"AWS_ACCESS_KEY_ID": "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY": "AWS_SECRET_ACCESS_KEY"}
SETTINGS = ("AWS_ENDPOINT_URL_S3", "AWS_REGION", "MLFLOW_TRACKING_URI")
HOUR = 3600


def _component(function: Callable[..., Any]) -> Any:
    return dsl.component(function, base_image=IMAGE, install_kfp_package=False)


@_component
def prepare(
    recipe: str,
    overrides: list[str],
    run_name: str,
    probes: list[str],
    storage_root: str,
    code_version: str,
    manifest: dsl.Output[dsl.Dataset],
) -> NamedTuple("Prepared", [("config", str), ("datasets", dict[str, str]), ("probes", list[str])]):  # type: ignore[valid-type]
    """Resolve the recipe and make its data sets: fingerprinted shards and an index."""
    import json

    from workflows import components

    config, datasets, chosen = components.prepare(recipe, overrides, run_name, probes, storage_root, code_version)
    with open(manifest.path, "w") as file:
        json.dump(datasets, file, indent=2)
    manifest.metadata.update({f"dataset/{name}": uri for name, uri in datasets.items()}, config=config)
    return config, datasets, chosen


@_component
def distill(
    config: str, datasets: dict[str, str], storage_root: str, code_version: str, student: dsl.Output[dsl.Model]
) -> str:
    """Train the student; continues from the newest checkpoint when the run was interrupted."""
    from workflows import components

    run, metadata = components.distill(config, datasets, storage_root, code_version, student.path)
    student.metadata.update(metadata)
    return run


@_component
def evaluate(config: str, datasets: dict[str, str], run: str, probe: str, storage_root: str, code_version: str) -> str:
    """Probe student and teachers on one data set; a failure becomes a row that says so."""
    from workflows import components

    return components.evaluate(config, datasets, run, probe, storage_root, code_version)


@_component
def report(
    config: str,
    run: str,
    rows: list[str],
    code_version: str,
    html: dsl.Output[dsl.HTML],
    markdown: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Compare the student with each teacher on every data set."""
    from workflows import components

    values = components.report(config, run, rows, code_version, html.path, markdown.path)
    metrics.metadata.update(values)


def _place(
    task: Any, image: Any, cpu: Any, memory: Any, hours: int, gpus: Any = None, shared_memory: str | None = None
) -> Any:
    """Where and how a task's pod runs; passes a namespace that enforces the `restricted` pod security standard."""
    task.set_container_image(image).set_cpu_limit(cpu).set_memory_limit(memory)
    # the compiler passes a parameter into a loop for the image's sake, but not for the resources' sake
    resources = (value for value in (cpu, memory, gpus) if isinstance(value, PipelineChannel))
    task.register_pipeline_channels(list(resources))
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.set_timeout(task, hours * HOUR)
    kubernetes.use_secret_as_env(task, "unic-s3", SECRET, optional=True)
    kubernetes.use_config_map_as_env(task, "unic-settings", {key: key for key in SETTINGS}, optional=True)
    # by field path: a parameter with the run's id would make every cache key unique
    kubernetes.use_field_path_as_env(task, "KFP_RUN_ID", "metadata.labels['pipeline/runid']")
    if gpus is not None:
        task.set_accelerator_type(GPU).set_accelerator_limit(gpus)
        kubernetes.add_toleration(task, key=GPU, operator="Exists", effect="NoSchedule")
    if shared_memory:
        kubernetes.empty_dir_mount(
            task, volume_name="shm", mount_path=SHARED_MEMORY, medium="Memory", size_limit=shared_memory
        )
    return task


def _pipeline(name: str, description: str = "") -> Callable[[Callable[..., Any]], Any]:
    decorate: Callable[[Callable[..., Any]], Any] = dsl.pipeline(name=name, description=description)
    return decorate


@_pipeline("probes")
def probes_in_parallel(
    config: str,
    datasets: dict[str, str],
    run: str,
    probes: list[str],
    storage_root: str,
    image: str,
    cpu: str,
    memory: str,
    gpus: str,
) -> list[str]:
    """One `evaluate` per probe; the rows of all of them."""
    with dsl.ParallelFor(probes) as probe:
        rows = evaluate(
            config=config,
            datasets=datasets,
            run=run,
            probe=probe,
            storage_root=storage_root,
            code_version=__version__,
        )
        _place(rows, image, cpu, memory, hours=24, gpus=gpus, shared_memory="2Gi")
    return dsl.Collected(rows.output)  # type: ignore[no-any-return]


@_pipeline(
    "unic",
    description=(
        "Distill one Vision Transformer from several frozen teachers and compare it with each of them. "
        "recipe: a recipe's name (paper_vitb16, unic_l, fashion_demo, smoke) or the URI of a YAML file. "
        'overrides: a list such as ["training.steps=1000"]. probes: data sets to compare on; [] means all of the '
        "recipe. run_name: results lie in <storage_root>/runs/<run_name>; empty means the recipe's; the same name "
        "again continues an interrupted run. distill_*, evaluate_*: resources of one pod of that step."
    ),
)
def unic_pipeline(
    recipe: str = "fashion_demo",
    overrides: list[str] = [],  # noqa: B006 (Kubeflow reads the default, nothing changes it)
    run_name: str = "",
    probes: list[str] = [],  # noqa: B006
    storage_root: str = "s3://unic",
    image: str = IMAGE,
    distill_cpu: str = "8",
    distill_memory: str = "32Gi",
    distill_gpus: str = "0",
    evaluate_cpu: str = "4",
    evaluate_memory: str = "16Gi",
    evaluate_gpus: str = "0",
) -> None:
    """The whole chain.

    Args:
        recipe: name of a recipe, or URI of a YAML file.
        overrides: `key.path=value` items that change the recipe.
        run_name: name of the run; empty means the recipe's. The same name again continues.
        probes: data sets to compare on; empty means all of the recipe.
        storage_root: URI under which data sets and runs are stored.
        image: container image of every step.
        distill_cpu: CPU cores of the distill step.
        distill_memory: memory of the distill step.
        distill_gpus: GPUs of the distill step.
        evaluate_cpu: CPU cores of each evaluate step.
        evaluate_memory: memory of each evaluate step.
        evaluate_gpus: GPUs of each evaluate step.
    """
    prepared = prepare(
        recipe=recipe,
        overrides=overrides,
        run_name=run_name,
        probes=probes,
        storage_root=storage_root,
        code_version=__version__,
    )
    _place(prepared, image, "4", "8Gi", hours=24)
    # it notices changed images itself, and does nothing where nothing changed
    prepared.set_caching_options(False)

    config, datasets = prepared.outputs["config"], prepared.outputs["datasets"]
    student = distill(config=config, datasets=datasets, storage_root=storage_root, code_version=__version__)
    _place(student, image, distill_cpu, distill_memory, hours=14 * 24, gpus=distill_gpus, shared_memory="8Gi")
    student.set_caching_options(True)

    run = student.outputs["Output"]
    probed = probes_in_parallel(
        config=config,
        datasets=datasets,
        run=run,
        probes=prepared.outputs["probes"],
        storage_root=storage_root,
        image=image,
        cpu=evaluate_cpu,
        memory=evaluate_memory,
        gpus=evaluate_gpus,
    )
    compared = report(config=config, run=run, rows=probed.output, code_version=__version__)
    _place(compared, image, "1", "2Gi", hours=1)
    compared.set_caching_options(True)


def compile_pipeline(output: Path, image: str = IMAGE) -> None:
    """Write the pipeline as IR YAML, ready for upload.

    Args:
        output: the file; must end in .yaml or .yml.
        image: default of the pipeline's `image` parameter.

    Raises:
        UnicError: the name of the file is wrong or it can't be written.
    """
    if output.suffix not in {".yaml", ".yml"}:
        raise UnicError(f"cannot write the pipeline to {output}: the name must end in .yaml")
    if not image:
        raise UnicError("the image is empty; give the name of one, as in registry.example.com/unic:1.0")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        compiler.Compiler().compile(unic_pipeline, str(output), pipeline_parameters={"image": image})
    except OSError as error:
        raise UnicError(f"cannot write {output}: {error.strerror}; choose another place") from error
