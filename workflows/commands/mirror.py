"""`unic teachers`: what can be distilled, and how its weights get to machines without the internet."""

from __future__ import annotations

import click

from workflows import console
from workflows.commands.options import config_argument, overrides_argument


@click.group(invoke_without_command=True)
@click.pass_context
def teachers(context: click.Context) -> None:
    """List the teachers, with license and size."""
    if context.invoked_subcommand is not None:
        return
    from unic_core.teachers import REGISTRY

    rows = [(s.id, s.model, s.license, s.parameters or "", s.gflops or "", s.image_size) for s in REGISTRY.values()]
    console.table(("teacher", "timm model", "license", "M params", "GFLOPs", "pixels"), rows)


@teachers.command()
@config_argument
@overrides_argument
@click.option("--to", "mirror", required=True, metavar="URI", help="Where to, as in s3://bucket/teachers.")
def mirror(config: str, overrides: tuple[str, ...], mirror: str) -> None:
    """Copy the weights that CONFIG's run starts with to a store.

    Pods with UNIC_TEACHERS set to the same URI take them from there, checked by SHA-256, and need no access to any
    hub. What is there already is left alone. Besides the teachers' these are the student's, where it starts pretrained.
    """
    from unic_core.config import load_config
    from unic_core.teachers import mirror_hosted, mirror_teacher

    run = load_config(config, overrides)
    found = [(teacher.name, *mirror_teacher(teacher, mirror)) for teacher in run.teachers]
    if run.student.pretrained:
        found.append(("student", *mirror_hosted(run.student.model, mirror)))
    rows = [
        (name, sha256 or "needs none", "copied" if is_new else "was there" if sha256 else "")
        for name, sha256, is_new in found
    ]
    console.table(("model", "sha256", ""), rows)
