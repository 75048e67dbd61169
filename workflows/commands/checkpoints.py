"""`unic checkpoints`: what a run has saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from unic_core.errors import UnicError
from workflows import console

if TYPE_CHECKING:
    from unic_core.storage import Store


@click.group()
def checkpoints() -> None:
    """List, verify and prune the checkpoints of a run.

    RUN is its URI, such as s3://bucket/unic/runs/my-student.
    """


@checkpoints.command("list")
@click.argument("run")
def list_command(run: str) -> int:
    """Show every checkpoint.

    Exit code 1 when the newest one is incomplete.
    """
    from unic_core.checkpoint import list_checkpoints

    found = list_checkpoints(_open(run))
    rows = [
        (info.step, "complete" if info.complete else "incomplete", f"{info.bytes / 1e6:,.1f}", _loss(info.metrics))
        for info in found
    ]
    console.table(("step", "state", "MB", "loss"), rows)
    return 0 if not found or found[-1].complete else 1


@checkpoints.command()
@click.argument("run")
def verify(run: str) -> int:
    """Read every file and compare its checksum.

    Exit code 1 when a checkpoint is damaged.
    """
    from unic_core.checkpoint import list_checkpoints, verify_checkpoint

    store = _open(run)
    results = []
    for info in list_checkpoints(store):
        console.logger.info("reading step %d (%.1f MB)", info.step, info.bytes / 1e6)
        results.append((info.step, verify_checkpoint(store, info.key) or "good"))
    console.table(("step", "result"), results)
    return 0 if all(result == "good" for _, result in results) else 1


@checkpoints.command()
@click.argument("run")
@click.option("--keep-last", type=click.IntRange(1), default=2, show_default=True, help="Newest ones to keep.")
@click.option("--keep-every", type=click.IntRange(1), help="Also keep multiples of this step.")
@click.option("--keep-best", is_flag=True, help="Also keep the one with the lowest loss.")
def prune(run: str, keep_last: int, keep_every: int | None, keep_best: bool) -> None:
    """Delete old checkpoints, and what interrupted writes left.

    Refused while the run is being trained.
    """
    from unic_core import lease
    from unic_core.checkpoint import Retention
    from unic_core.checkpoint import prune as delete

    store = _open(run)
    with lease.hold(store, run, console.say, lost=lambda: None):
        gone = delete(store, Retention(keep_last, keep_every, "loss" if keep_best else None))
        parts = store.sweep()
    console.say(f"deleted {len(gone)} checkpoint(s) and {parts} unfinished upload(s)")


def _open(run: str) -> Store:
    from unic_core.storage import open_store

    store = open_store(run)
    if not store.exists("config.yaml") and not store.list("checkpoints/"):
        raise UnicError(f"no run at {store.uri}; give the URI of one, as in s3://bucket/unic/runs/my-student")
    return store


def _loss(metrics: Mapping[str, float]) -> str:
    loss = metrics.get("loss")
    return "" if loss is None else f"{loss:.4f}"
