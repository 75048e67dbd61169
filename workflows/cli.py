"""The command line, `unic`. It parses, calls one function and shows the result; everything heavy is imported late.

Exit codes: 0 done, 1 done but some results are missing, 2 something the user can put right, 130 stopped.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unic_core import __version__
from unic_core.errors import UnicError
from workflows import console
from workflows.commands import stages
from workflows.commands.checkpoints import checkpoints
from workflows.commands.compare import compare
from workflows.commands.datasets import datasets
from workflows.commands.launch import cancel, launch, logs
from workflows.commands.mirror import teachers
from workflows.commands.options import overrides_argument, probe_option, root_option, with_config
from workflows.commands.pipeline import pipeline
from workflows.commands.run import run
from workflows.termination import last_words

if TYPE_CHECKING:
    from unic_core.config import RunConfig
    from workflows.stack import Stack

FILE = click.Path(path_type=Path, dir_okay=False)
DIRECTORY = click.Path(path_type=Path, file_okay=False)


def main() -> None:
    """Entry point: errors become one sentence, Ctrl-C leaves no process behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console.show_logs()
    try:
        code = unic.main(standalone_mode=False)
    except UnicError as error:
        click.echo(f"error: {error}", err=True)
        last_words(str(error))
        code = 2
    except click.ClickException as error:
        error.show()
        last_words(error.format_message())
        code = 2
    except (click.Abort, KeyboardInterrupt):
        from workflows.processes import end_descendants

        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_descendants()
        click.echo("stopped; run the same command again to continue", err=True)
        code = 130
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="unic")
def unic() -> None:
    """Distill one Vision Transformer from several frozen teachers.

    CONFIG is the name of a recipe, a YAML file or the URI of one; key=value pairs after it change single keys, as in
    `unic distill fashion_demo training.steps=100`.
    """


@unic.command()
@click.option("--quick", is_flag=True, help="A short form: about three minutes instead of ten.")
@click.option("--directory", type=DIRECTORY, default="./.unic/demo", show_default=True, help="Holds everything.")
def demo(quick: bool, directory: Path) -> None:
    """Run the whole chain on this machine.

    Real images, two pretrained teachers, an S3 server, MLflow, and a report at the end.
    """
    from workflows.demo import run_demo

    run_demo(quick, directory.absolute())


@unic.command()
@with_config
@root_option
@click.option("--workers", type=click.IntRange(1), help="Processes; one per processor unless given.")
def prepare(config: RunConfig, root: str, workers: int | None) -> int:
    """Make the data sets of CONFIG.

    Does nothing where nothing changed; continues where it was interrupted. Exit code 1 when sets that only probes need
    could not be made; they are named.
    """
    found = stages.prepare(config, root, workers)
    console.table(("data set", "uri"), list(found.items()))
    return 0 if len(found) == len(config.datasets) else 1


@unic.command()
@with_config
@root_option
def distill(config: RunConfig, root: str) -> None:
    """Train the student, or continue where it stopped."""
    from workflows import steps

    steps.check(config)
    datasets = stages.prepare(config, root)
    console.say(f"student: {stages.distill(config, root, datasets)}/student")


@unic.command()
@with_config
@root_option
@probe_option
def evaluate(config: RunConfig, root: str, probes: tuple[str, ...]) -> int:
    """Probe student and teachers on each data set.

    Exit code 1 when some results are missing; they are named.
    """
    from workflows import steps
    from workflows.request import choose_datasets

    chosen = choose_datasets(config, probes)
    datasets, run = stages.prepare(config, root), steps.run_uri(config, root)
    rows = [r for probe in chosen for r in steps.evaluate(config, root, probe, datasets, run, console.logger.info)]
    return console.show_rows(rows)


@unic.command()
@with_config
@root_option
def report(config: RunConfig, root: str) -> int:
    """Compare the student with its teachers.

    Writes HTML, Markdown, pictures, CSV and JSON into the run; a student that beats the champion takes its place.
    Exit code 1 when some results are missing; it names them.
    """
    from workflows import steps

    run = steps.run_uri(config, root)
    metrics = steps.report(config, run)
    console.say(steps.promote(config))
    console.table(("metric", "value"), sorted(metrics.items()))
    console.say(f"report: {run}/report/index.html")
    return 1 if metrics["probe/failed"] or metrics.get("tasks/failed") else 0


@unic.command("import")
@click.argument("path", type=FILE)
@click.option("--output", required=True, help="Directory or URI for the student, projectors and standardizer.")
def import_command(path: Path, output: str) -> None:
    """Read a published UNIC checkpoint.

    Writes its student, projectors and standardizer in this project's layout.
    """
    from unic_core.export import import_unic, write_imported
    from unic_core.storage import open_store

    write_imported(import_unic(path), open_store(output))
    console.say(f"wrote {output}")


@unic.command()
@click.argument("student")
@click.option("--format", "layout", type=click.Choice(["onnx", "timm"]), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="ONNX file, or directory for timm.")
def export(student: str, layout: str, output: Path) -> None:
    """Export the STUDENT (its directory or URI) for use elsewhere."""
    from unic_core import export as models
    from unic_core.storage import open_store

    if layout == "onnx":
        difference = models.export_onnx(student, output)
        console.say(f"largest difference from torch: {difference:.1e}")
    else:
        models.load_student(student)  # nothing is copied that could not be read
        store = open_store(student)
        for key in store.list():
            store.download(key, output / key)
    console.say(f"wrote {output}")


@unic.group()
def stack() -> None:
    """An S3 server and MLflow on this machine."""


stack_directory = click.option(
    "--directory", type=DIRECTORY, default="./.unic/stack", show_default=True, help="Holds data, logs and keys."
)


@stack.command("up")
@stack_directory
def stack_up(directory: Path) -> None:
    """Start both and leave them running.

    Servers that AWS_ENDPOINT_URL_S3 or MLFLOW_TRACKING_URI name are used instead of own ones.
    """
    from workflows import stack as servers

    console.show_stack(servers.start(directory))
    console.say(f'to use it in this shell: eval "$(unic stack env --directory {shlex.quote(str(directory))})"')


@stack.command("down")
@stack_directory
def stack_down(directory: Path) -> None:
    """Stop both; what they store stays."""
    from workflows import stack as servers

    console.say(f"ended {servers.stop(directory)} process(es)")


@stack.command("status")
@stack_directory
def stack_status(directory: Path) -> int:
    """Show whether they run; exit code 1 when not."""
    return console.show_stack(_started(directory))


@stack.command("env")
@stack_directory
def stack_env(directory: Path) -> None:
    """Print the variables that a shell needs, keys included."""
    for name, value in _started(directory).environment().items():
        console.say(f"export {name}={shlex.quote(value)}")


def _started(directory: Path) -> Stack:
    from workflows import stack as servers

    found = servers.status(directory)
    if found is None:
        raise UnicError(f"no stack was started in {directory}; start one with `unic stack up`")
    return found


@unic.command()
@click.argument("config", default="fashion_demo")
@overrides_argument
@root_option
@click.option("--cluster", is_flag=True, help="Check the cluster of the current kubeconfig instead.")
@click.option("--namespace", "-n", envvar="UNIC_NAMESPACE", default="unic", show_default=True, help="With --cluster.")
@click.option("--image", envvar="UNIC_IMAGE", help="With --cluster: the image of the pods.")
def doctor(config: str, overrides: tuple[str, ...], root: str, cluster: bool, namespace: str, image: str | None) -> int:
    """Check this machine and what CONFIG needs.

    Exit code 2 when something required is broken.
    """
    if cluster:
        from workflows.launch.config import IMAGE, LaunchConfig
        from workflows.launch.doctor import examine_cluster

        return console.show_checks(examine_cluster(LaunchConfig(namespace=namespace, image=image or IMAGE), root))
    from workflows.doctor import examine

    return console.show_checks(examine(config, overrides, root))


@unic.group()
def config() -> None:
    """Look at configs."""


@config.command("show")
@with_config
def config_show(config: RunConfig) -> None:
    """Print the complete config, defaults and overrides included."""
    from unic_core.config import dump_config

    console.say(dump_config(config).rstrip())


@config.command("schema")
def config_schema() -> None:
    """Print the JSON schema of configs, for editors and forms."""
    from unic_core.config import json_schema

    console.say(json.dumps(json_schema(), indent=2))


for command in (cancel, checkpoints, compare, datasets, launch, logs, pipeline, run, teachers):
    unic.add_command(command)
