"""The Kubeflow pipeline: prepare -> distill -> one evaluation per data set, in parallel -> report -> promote.

The components only hand over to `workflows.components`. This file has no `from __future__ import annotations`:
Kubeflow reads the annotations as types and ships the functions' source as text.

Three shapes here are deliberate. The fan-out is a pipeline of its own, fed with parameters: the local runner replaces
what comes from an earlier task inside a loop by the loop's item, but passes a sub-pipeline's inputs correctly. One
step evaluates all models on a data set, because a step costs twenty seconds of control plane. And every component
takes `code_version`: Kubeflow caches by inputs and image name, and knows nothing of the code inside.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from kfp import dsl

from unic_core import __version__
from workflows.launch.config import IMAGE
from workflows.pipeline.pods import place

DAY = 24


def _component(function: Callable[..., Any]) -> Any:
    return dsl.component(function, base_image=IMAGE, install_kfp_package=False)


@_component
def prepare(
    distill_launcher: str,
    distill_pod_memory: str,
    distill_workers_per_pod: int,
    evaluate_cpu: str,
    evaluate_datasets: list[str],
    evaluate_memory: str,
    fail_on_missing: bool,
    image: str,
    recipe: str,
    recipe_overrides: list[str],
    run_name: str,
    storage_root: str,
    code_version: str,
    manifest: dsl.Output[dsl.Dataset],
) -> NamedTuple(  # type: ignore[valid-type]
    "Prepared", [("config", str), ("datasets", dict[str, str]), ("probes", list[str]), ("gpus", str)]
):
    """Check the form, resolve the recipe and make its data sets: fingerprinted shards and an index."""
    import json

    from workflows import components

    parameters = {
        "distill_launcher": distill_launcher,
        "distill_pod_memory": distill_pod_memory,
        "distill_workers_per_pod": distill_workers_per_pod,
        "evaluate_cpu": evaluate_cpu,
        "evaluate_datasets": evaluate_datasets,
        "evaluate_memory": evaluate_memory,
        "fail_on_missing": fail_on_missing,
        "image": image,
        "recipe": recipe,
        "recipe_overrides": recipe_overrides,
        "run_name": run_name,
        "storage_root": storage_root,
    }
    prepared = components.prepare(parameters, code_version)
    with open(manifest.path, "w") as file:
        json.dump(prepared.datasets, file, indent=2)
    manifest.metadata.update(prepared.metadata)
    return prepared.config, prepared.datasets, prepared.probes, prepared.gpus


@_component
def distill(
    config: str,
    datasets: dict[str, str],
    storage_root: str,
    launcher: str,
    image: str,
    pod_memory: str,
    workers_per_pod: int,
    code_version: str,
    student: dsl.Output[dsl.Model],
) -> str:
    """Start the training job, or continue an interrupted one, show its log, and wait for the student."""
    from workflows import components

    run, metadata = components.distill(
        config, datasets, storage_root, launcher, image, pod_memory, workers_per_pod, code_version, student.path
    )
    student.metadata.update(metadata)
    return run


@_component
def evaluate(
    config: str,
    datasets: dict[str, str],
    run: str,
    dataset: str,
    storage_root: str,
    code_version: str,
    confusion: dsl.Output[dsl.ClassificationMetrics],
) -> str:
    """Probe the student, its teachers and a random student on one data set; a failure becomes a row that says so."""
    from workflows import components

    rows, matrix = components.evaluate(config, datasets, run, dataset, storage_root, code_version)
    if matrix is not None:
        confusion.log_confusion_matrix(matrix.classes, matrix.matrix)
    return rows


@_component
def report(
    config: str,
    run: str,
    rows: list[str],
    code_version: str,
    html: dsl.Output[dsl.HTML],
    markdown: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
) -> list[str]:
    """Compare the student with each teacher on every data set; name what is missing."""
    from workflows import components

    missing, values = components.report(config, run, rows, code_version, html.path, markdown.path)
    metrics.metadata.update(values)
    return missing


@_component
def promote(config: str, missing: list[str], fail_on_missing: bool, code_version: str) -> str:
    """Make the student the champion of the registry if it is better; fail when asked to and results are missing."""
    from workflows import components

    return components.promote(config, missing, fail_on_missing, code_version)


def _pipeline(name: str, description: str = "") -> Callable[[Callable[..., Any]], Any]:
    decorate: Callable[[Callable[..., Any]], Any] = dsl.pipeline(name=name, description=description)
    return decorate


@_pipeline("evaluations")
def evaluations(
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
    """One `evaluate` per data set; the rows of all of them."""
    with dsl.ParallelFor(probes) as dataset:
        rows = evaluate(
            config=config,
            datasets=datasets,
            run=run,
            dataset=dataset,
            storage_root=storage_root,
            code_version=__version__,
        )
        place(rows, image, cpu, memory, hours=DAY, gpus=gpus, shm="2Gi")
        # a cached failure would never be tried again; what succeeded, the step finds on S3 by itself
        rows.set_caching_options(False)
    return dsl.Collected(rows.outputs["Output"])  # type: ignore[no-any-return]


def _train(prepared: Any, storage_root: Any, launcher: Any, image: Any, pod_memory: Any, workers_per_pod: Any) -> Any:
    """The run's URI."""
    student = distill(
        config=prepared.outputs["config"],
        datasets=prepared.outputs["datasets"],
        storage_root=storage_root,
        launcher=launcher,
        image=image,
        pod_memory=pod_memory,
        workers_per_pod=workers_per_pod,
        code_version=__version__,
    )
    place(student, image, "1", "1Gi", hours=14 * DAY + 1)  # an hour more than the job itself has
    student.set_caching_options(True)
    return student.outputs["Output"]


def _judge(prepared: Any, run: Any, storage_root: Any, image: Any, cpu: Any, memory: Any, fail_on_missing: Any) -> None:
    """Evaluate, report and promote."""
    config = prepared.outputs["config"]
    evaluated = evaluations(
        config=config,
        datasets=prepared.outputs["datasets"],
        run=run,
        probes=prepared.outputs["probes"],
        storage_root=storage_root,
        image=image,
        cpu=cpu,
        memory=memory,
        gpus=prepared.outputs["gpus"],
    )
    compared = report(config=config, run=run, rows=evaluated.output, code_version=__version__)
    place(compared, image, "1", "2Gi", hours=1)
    # it is cheap, reads rows that a key of the cache does not know, and gives every run of the pipeline its metrics
    compared.set_caching_options(False)
    missing = compared.outputs["Output"]
    promoted = promote(config=config, missing=missing, fail_on_missing=fail_on_missing, code_version=__version__)
    place(promoted, image, "1", "2Gi", hours=1)
    promoted.set_caching_options(False)  # it depends on who is the champion by now


@_pipeline(
    "unic",
    description=(
        "Distill one Vision Transformer from several frozen teachers and compare it with each of them.\n"
        "recipe: a recipe's name (paper_vitb16, unic_l, fashion_demo, smoke), the URI of a YAML file, or a short YAML "
        'text. recipe_overrides: a list such as ["training.steps=1000"]. run_name: results lie in '
        "<storage_root>/runs/<run_name>; empty means the recipe's; the same name again continues an interrupted run. "
        "distill_launcher: pytorchjob or rayjob. distill_workers_per_pod: training processes, and so GPUs, of one "
        "pod; how many there are of both says the recipe (cluster.workers, cluster.gpus_per_worker). "
        "evaluate_datasets: data sets to compare on; [] means all of the recipe. fail_on_missing: fail at the end "
        "when a result is missing. evaluate_cpu, evaluate_memory: of the steps prepare and evaluate."
    ),
)
def unic_pipeline(
    distill_launcher: str = "pytorchjob",
    distill_pod_memory: str = "16Gi",
    distill_workers_per_pod: int = 1,
    evaluate_cpu: str = "4",
    evaluate_datasets: list[str] = [],  # noqa: B006 (Kubeflow reads the default, nothing changes it)
    evaluate_memory: str = "16Gi",
    fail_on_missing: bool = False,
    image: str = IMAGE,
    recipe: str = "smoke",
    recipe_overrides: list[str] = [],  # noqa: B006
    run_name: str = "",
    storage_root: str = "s3://unic",
) -> None:
    """The whole chain.

    Args:
        distill_launcher: what trains, pytorchjob or rayjob.
        distill_pod_memory: memory of each training pod.
        distill_workers_per_pod: training processes, and so GPUs, in one pod.
        evaluate_cpu: CPU cores of the steps prepare and evaluate.
        evaluate_datasets: data sets to compare on; empty means all of the recipe.
        evaluate_memory: memory of the steps prepare and evaluate.
        fail_on_missing: fail at the end when a result is missing.
        image: container image of every step and of the training pods.
        recipe: name of a recipe, URI of a YAML file, or a short YAML text.
        recipe_overrides: items key.path=value that change the recipe.
        run_name: name of the run; empty means the recipe's. The same name again continues.
        storage_root: URI under which data sets and runs are stored.
    """
    prepared = prepare(
        distill_launcher=distill_launcher,
        distill_pod_memory=distill_pod_memory,
        distill_workers_per_pod=distill_workers_per_pod,
        evaluate_cpu=evaluate_cpu,
        evaluate_datasets=evaluate_datasets,
        evaluate_memory=evaluate_memory,
        fail_on_missing=fail_on_missing,
        image=image,
        recipe=recipe,
        recipe_overrides=recipe_overrides,
        run_name=run_name,
        storage_root=storage_root,
        code_version=__version__,
    )
    # not cached: it notices changed images itself, and does nothing where nothing changed
    place(prepared, image, evaluate_cpu, evaluate_memory, hours=DAY).set_caching_options(False)
    run = _train(prepared, storage_root, distill_launcher, image, distill_pod_memory, distill_workers_per_pod)
    _judge(prepared, run, storage_root, image, evaluate_cpu, evaluate_memory, fail_on_missing)
