"""`unic launch`, `unic logs`, `unic cancel`: a run elsewhere, in a cluster or in the background."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

import click

from unic_core.errors import UnicError
from workflows import console
from workflows.commands.options import root_option, with_config

if TYPE_CHECKING:
    from unic_core.config import RunConfig
    from workflows.launch import Launcher

BACKENDS = ("pytorchjob", "rayjob", "local")


def _place(command: Callable[..., Any]) -> Callable[..., Any]:
    """The two options that say where a job is."""
    backend = click.option(
        "--backend", type=click.Choice(BACKENDS), default="pytorchjob", show_default=True, help="What runs the job."
    )
    namespace = click.option(
        "--namespace", "-n", envvar="UNIC_NAMESPACE", default="unic", show_default=True, help="[env: UNIC_NAMESPACE]"
    )
    return backend(namespace(command))


@click.command()
@with_config
@root_option
@_place
@click.option("--image", envvar="UNIC_IMAGE", help="Container image of the pods. [env: UNIC_IMAGE]")
@click.option("--workers-per-pod", type=click.IntRange(1), default=1, show_default=True, help="Training processes.")
@click.option("--cpu", help="CPU cores of a pod; by default what its training processes reserve.")
@click.option("--cpu-request", help="CPU cores that the scheduler sets aside for a pod; by default all of --cpu.")
@click.option("--memory", help="Memory of a pod, as in 64Gi.")
@click.option("--shared-memory", help="Size of /dev/shm, a part of --memory.")
@click.option("--scratch", help="Size of a pod's cache on the node's disk.")
@click.option("--priority-class", help="Priority class of the pods.")
@click.option("--queue", help="LocalQueue of Kueue that admits the job.")
@click.option("--until", "stage", type=click.Choice(["distill", "run"]), default="run", show_default=True, hidden=True)
@click.option("--detach", is_flag=True, help="Return as soon as the job exists.")
def launch(config: RunConfig, root: str, detach: bool, **options: Any) -> int:
    """Run CONFIG as a job and show its log.

    Attaches to the job when it exists already. Ctrl-C leaves the job running.
    """
    from pydantic import ValidationError

    from workflows.launch import LaunchConfig, job_name, open_launcher

    name = job_name(config)
    try:
        settings = LaunchConfig(**{key: value for key, value in options.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        is_quantity = first["type"] == "string_pattern_mismatch"
        reason = "give a quantity as Kubernetes writes it, as in 500m or 16Gi" if is_quantity else first["msg"]
        raise UnicError(f"--{option} {first['input']!r} can't be used; {reason}") from None
    if settings.backend != "local" and "://" not in root:
        raise UnicError(f"pods can't reach {root}; set --root to a place on S3, as in --root s3://bucket/unic")
    launcher = open_launcher(settings)
    started = launcher.submit(config, root)
    console.logger.info("%s %s", "started" if started else "attached to", _called(name, settings.backend))
    if detach:
        return 0
    return _watch(launcher, name, settings.backend, settings.namespace)


@click.command()
@click.argument("name")
@_place
def logs(name: str, backend: str, namespace: str) -> int:
    """Show the log of the job NAME until it ends."""
    return _watch(_open(backend, namespace), name, backend, namespace)


@click.command()
@click.argument("name")
@_place
def cancel(name: str, backend: str, namespace: str) -> None:
    """End the job NAME.

    Its last checkpoint stays: launching the run again continues there.
    """
    if not _open(backend, namespace).cancel(name):
        raise UnicError(f"there is no {_called(name, backend)} in {namespace}; see --namespace and --backend")
    console.say(f"ended {_called(name, backend)}")


def _open(backend: str, namespace: str) -> Launcher:
    from workflows.launch import Backend, LaunchConfig, open_launcher

    assert backend in get_args(Backend)  # noqa: S101 (click has checked it)
    return open_launcher(LaunchConfig(backend=backend, namespace=namespace))  # type: ignore[arg-type]


def _watch(launcher: Launcher, name: str, backend: str, namespace: str) -> int:
    """Show the job's log until it ends: 0 when it succeeded, 1 when it failed. Ctrl-C only stops watching."""
    place = f"--backend {backend}" + ("" if backend == "local" else f" --namespace {namespace}")
    try:
        status = launcher.wait(name, console.say, console.logger.info)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not turn this into something else
        click.echo(
            f"\ndetached; the job goes on. Come back with `unic logs {name} {place}`, "
            f"end it with `unic cancel {name} {place}`",
            err=True,
        )
        return 0
    if status.phase == "absent":
        raise UnicError(f"there is no {_called(name, backend)}; start it with `unic launch`")
    console.say(f"{_called(name, backend)} {status.phase}{': ' if status.reasons else ''}{'; '.join(status.reasons)}")
    return 0 if status.phase == "succeeded" else 1


def _called(name: str, backend: str) -> str:
    return f"{ {'pytorchjob': 'PyTorchJob', 'rayjob': 'RayJob', 'local': 'local job'}[backend] } {name}"
