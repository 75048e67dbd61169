"""`unic run`: the whole chain in one command, as the pods of a launched job do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from workflows import console
from workflows.commands import stages
from workflows.commands.options import root_option, with_config
from workflows.patience import patiently

if TYPE_CHECKING:
    from unic_core.config import RunConfig

T = TypeVar("T")


@click.command()
@with_config
@root_option
@click.option(
    "--until", type=click.Choice(["distill", "report"]), default="report", show_default=True, help="The last stage."
)
@click.option(
    "--patience", type=float, default=0, metavar="SECONDS", help="How long a stage waits for S3 or MLflow to come back."
)
def run(config: RunConfig, root: str, until: str, patience: float) -> int:
    """Prepare, distill, evaluate and report.

    Continues where it stopped, and does nothing where everything is done. Exit code 1 when some results are missing.
    """
    from workflows import steps

    def attempt(stage: Callable[[], T]) -> T:
        return patiently(stage, patience)

    where = steps.run_uri(config, root)
    if attempt(lambda: _is_complete(config, where, until)):
        console.say(f"run {config.name} is complete, nothing to do: {where}")
        return 0
    steps.check(config)
    datasets = attempt(lambda: stages.prepare(config, root))
    attempt(lambda: stages.distill(config, root, datasets))
    console.say(f"student: {where}/student")
    if until == "distill":
        return 0
    rows = []
    for probe in steps.probe_groups(config):
        rows += attempt(lambda p=probe: steps.evaluate(config, root, p, datasets, where, console.logger.info))  # type: ignore[misc]
    metrics = attempt(lambda: steps.report(config, where))
    console.logger.info("%s", attempt(lambda: steps.promote(config)))
    console.table(("metric", "value"), sorted(metrics.items()))
    code = console.show_rows(rows)
    console.say(f"report: {where}/report/index.html")
    return code


def _is_complete(config: RunConfig, run: str, until: str) -> bool:
    """Was everything up to `until` made, from this very config?"""
    from unic_core.storage import open_store
    from workflows import steps

    if until == "distill" or not steps.is_distilled(config, run):
        return steps.is_distilled(config, run)
    store = open_store(run)
    return store.exists("report/index.html") and not any(row.error for row in steps.read_rows(store))
