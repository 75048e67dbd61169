"""Stages with their progress on the terminal, for the commands that run them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workflows import console

if TYPE_CHECKING:
    from unic_core.config import RunConfig


def prepare(config: RunConfig, root: str, workers: int | None = None) -> dict[str, str]:
    """Make the data sets of `config`; returns their URIs by name."""
    from workflows import steps

    with console.progress("images") as progress:
        return steps.prepare(config, root, progress, workers)


def distill(config: RunConfig, root: str, datasets: dict[str, str]) -> str:
    """Train the student; returns the URI of the run."""
    from workflows import steps

    with console.progress("steps") as progress:
        metrics = console.training_progress(progress)
        return steps.distill(config, root, datasets, console.logger.info, metrics)
