"""`unic pipeline`: the Kubeflow pipeline as a file, as a run in Kubeflow, and as a run on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unic_core.errors import OutageError, UnicError
from workflows import console
from workflows.commands.options import config_argument, overrides_argument, probe_option, root_option

if TYPE_CHECKING:
    from workflows.request import PipelineRequest

FILE = click.Path(path_type=Path, dir_okay=False)


@contextmanager
def _kfp() -> Iterator[None]:
    """Around imports that need all of kfp: the image has only what a step needs."""
    try:
        yield
    except ImportError as error:
        raise UnicError(
            f"{error.name} is not installed here; the image has no client and no compiler of Kubeflow. Do this where "
            "the whole package is installed, as on a laptop or in a notebook"
        ) from error


@click.group()
def pipeline() -> None:
    """The Kubeflow pipeline."""


@pipeline.command("compile")
@click.option("--output", type=FILE, required=True, help="The YAML file to write, ready for upload.")
@click.option("--image", help="Default container image of the steps.")
@click.option("--resources", "namespace", metavar="NAMESPACE", help="Write custom resources for kubectl apply instead.")
def pipeline_compile(output: Path, image: str | None, namespace: str | None) -> None:
    """Write the pipeline as YAML for upload to Kubeflow.

    With --resources it becomes a Pipeline and a PipelineVersion for a Kubeflow that keeps its pipelines in Kubernetes.
    """
    from workflows.launch.config import IMAGE

    with _kfp():
        from workflows.pipeline.compile import compile_pipeline

    compile_pipeline(output, IMAGE if image is None else image, namespace)
    console.say(f"wrote {output}")


@pipeline.command("run")
@config_argument
@overrides_argument
@root_option
@probe_option
@click.option("--fail-on-missing", is_flag=True, help="Fail when results are missing, and promote nothing.")
def pipeline_run(
    config: str, overrides: tuple[str, ...], root: str, probes: tuple[str, ...], fail_on_missing: bool
) -> int:
    """Run the pipeline on this machine, each step in a process of its own.

    What is done already is not done again. Ctrl-C ends everything.
    """
    from unic_core.storage import open_store
    from workflows import steps
    from workflows.local_pipeline import run_pipeline
    from workflows.request import choose_datasets, read_request

    request = read_request(
        {
            "recipe": config,
            "recipe_overrides": overrides,
            "storage_root": root,
            "evaluate_datasets": probes,
            "fail_on_missing": fail_on_missing,
            "distill_launcher": "local",
        }
    )
    resolved = request.config()
    choose_datasets(resolved, probes)
    run_pipeline(request)
    run = steps.run_uri(resolved, root)
    console.say(f"report: {run}/report/index.html")
    return console.show_rows(steps.read_rows(open_store(run)))


def _kubeflow(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say where Kubeflow is and how it is entered."""
    for option in (
        click.option("--host", envvar="KFP_HOST", help="Address of Kubeflow Pipelines. [env: KFP_HOST]"),
        click.option(
            "--namespace", "-n", envvar="KFP_NAMESPACE", help="Yours, in a shared Kubeflow. [env: KFP_NAMESPACE]"
        ),
        click.option("--token-file", type=FILE, help="File with a token; in a pod the service account's is found."),
        click.option("--ca-file", type=FILE, help="Certificate of the authority that signed the host's."),
    ):
        command = option(command)
    return command


@pipeline.command("submit")
@config_argument
@overrides_argument
@_kubeflow
@click.option(
    "--root", envvar="UNIC_ROOT", default="s3://unic", show_default=True, help="Where results lie. [env: UNIC_ROOT]"
)
@click.option("--image", envvar="UNIC_IMAGE", help="Container image of all pods. [env: UNIC_IMAGE]")
@click.option("--launcher", type=click.Choice(["pytorchjob", "rayjob"]), default="pytorchjob", show_default=True)
@click.option("--workers-per-pod", type=int, default=1, show_default=True, help="Training processes in a pod.")
@click.option("--pod-memory", default="16Gi", show_default=True, help="Memory of a training pod.")
@click.option("--evaluate-cpu", default="4", show_default=True, help="CPU cores of an evaluation.")
@click.option("--evaluate-memory", default="16Gi", show_default=True, help="Memory of an evaluation.")
@probe_option
@click.option("--fail-on-missing", is_flag=True, help="Let the run fail when results are missing.")
@click.option("--experiment", default="unic", show_default=True, help="Experiment in Kubeflow.")
@click.option("--service-account", help="Of the steps; Kubeflow's own by default.")
@click.option("--no-cache", is_flag=True, help="Ignore results that Kubeflow has cached.")
@click.option("--wait", is_flag=True, help="Return when the run has ended; exit code 1 when it failed.")
def pipeline_submit(config: str, overrides: tuple[str, ...], probes: tuple[str, ...], **options: Any) -> int:
    """Start a run in Kubeflow.

    Everything is checked here first. CONFIG may be a file: a short one travels as text, a long one belongs on S3.
    """
    with _kfp():
        from workflows.pipeline.submit import Kubeflow, Submission, submit, wait

    request = _request(config, overrides, probes, options)
    kubeflow = Kubeflow(*(options[key] for key in ("host", "namespace", "token_file", "ca_file")))
    submission = Submission(
        request, options["experiment"], options["service_account"], use_cache=not options["no_cache"]
    )
    client = kubeflow.connect()
    run = submit(client, kubeflow, submission)
    console.say(f"submitted {run.name}: {run.url}")
    return wait(client, run, console.logger.info) if options["wait"] else 0


def _request(
    config: str, overrides: tuple[str, ...], probes: tuple[str, ...], options: dict[str, Any]
) -> PipelineRequest:
    """The checked request; a local file becomes its text."""
    from workflows.request import choose_datasets, read_request

    given = {
        "recipe": _recipe(config),
        "recipe_overrides": overrides,
        "evaluate_datasets": probes,
        "storage_root": options["root"],
        "distill_launcher": options["launcher"],
        "distill_workers_per_pod": options["workers_per_pod"],
        "distill_pod_memory": options["pod_memory"],
        "evaluate_cpu": options["evaluate_cpu"],
        "evaluate_memory": options["evaluate_memory"],
        "fail_on_missing": options["fail_on_missing"],
        "image": options["image"],
    }
    request = read_request({key: value for key, value in given.items() if value is not None})
    try:
        resolved = request.config()
    except OutageError as error:
        console.logger.warning("the recipe can't be read from here (%s); the pipeline's first step checks it", error)
    else:
        choose_datasets(resolved, probes)
    return request


def _recipe(config: str) -> str:
    """What the pipeline is given for CONFIG: the text of a local file, else CONFIG itself."""
    from unic_core.recipes import RECIPES
    from workflows.request import is_yaml

    if config in RECIPES or is_yaml(config) or not os.path.isfile(config):  # which refuses no name, as Path does
        return config
    try:
        return Path(config).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnicError(f"cannot read {config} ({error}); give a YAML file") from None
