"""What the terminal shows: tables, progress, log lines. Plain text wherever the output is not a terminal."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import click

if TYPE_CHECKING:
    from unic_core.evals.results import ResultRow
    from workflows.doctor import Check
    from workflows.stack import Stack

logger = logging.getLogger(__name__)

LINE_EVERY_S = 10.0


class Progress(Protocol):
    """Told how far `what` is: `done` of `total` (None: unknown), and what else is worth a word."""

    def __call__(self, what: str, done: int, total: int | None, note: str = "") -> None: ...


class _Echo(logging.Handler):
    """Writes each line of a record behind a prefix, to what is standard output or error at that moment."""

    def __init__(self, prefix: str, err: bool) -> None:
        super().__init__()
        self.prefix, self.err = prefix, err

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        for line in (level + self.format(record)).splitlines():
            click.echo(self.prefix + line, err=self.err)


def show_logs(prefix: str = "", err: bool = True) -> None:
    """Show our own messages (INFO and up) and everybody's warnings on standard error (or output)."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_Echo(prefix, err)], force=True)
    for package in ("unic_core", "workflows"):
        logging.getLogger(package).setLevel(logging.INFO)


def say(text: str) -> None:
    """Write a result to standard output; logs and progress go to standard error."""
    click.echo(text)


# ---------------------------------------------------------------- tables


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], styles: Sequence[str] | None = None) -> None:
    """Print rows under their column names: a rich table on a terminal, aligned text elsewhere.

    Args:
        columns: the head line.
        rows: one cell per column; numbers are aligned to the right.
        styles: a rich style per row, used on a terminal only.
    """
    if not sys.stdout.isatty():
        say(plain_table(columns, rows))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = Table(header_style="bold")
    for index, name in enumerate(columns):
        out.add_column(name, justify="right" if _numeric(rows, index) else "left", overflow="fold")
    for index, row in enumerate(rows):
        out.add_row(*(Text(_cell(cell)) for cell in row), style=styles[index] if styles else None)
    Console().print(out)


def show_checks(checks: Sequence[Check]) -> int:
    """The table of `unic doctor`; 2 when something required is broken, else 0."""
    styles = {"ok": "green", "warning": "yellow", "broken": "bold red"}
    rows = [(check.name, check.state, check.found, check.advice) for check in checks]
    table(("what", "state", "found", "what to do"), rows, [styles[check.state] for check in checks])
    return 2 if any(check.state == "broken" for check in checks) else 0


def show_stack(stack: Stack) -> int:
    """The table of `unic stack`; 1 when one of the two does not run, else 0."""
    servers = {"S3": stack.s3, "MLflow": stack.mlflow}
    table(("server", "state", "endpoint"), [(name, s.state, s.endpoint) for name, s in servers.items()])
    return 1 if any(server.state == "stopped" for server in servers.values()) else 0


def show_rows(rows: Sequence[ResultRow]) -> int:
    """The tables of results; 1 when some are missing, which are named on standard error, else 0."""
    from unic_core.evals.results import TASKS, format_score

    good = [row for row in rows if row.error is None]
    probes = [row for row in good if row.protocol not in TASKS]
    cells = [(r.dataset, r.model, r.protocol, f"{r.top1:.1%}", f"{r.ci_low:.1%} to {r.ci_high:.1%}") for r in probes]
    if probes or not good:
        table(("data set", "model", "protocol", "top-1", "95 % interval"), cells)
    tasks = [
        (r.protocol, r.dataset, r.model, r.metric, *(format_score(r.metric, x) for x in (r.score, r.ci_low, r.ci_high)))
        for r in good
        if r.protocol in TASKS
    ]
    if tasks:
        table(("task", "data set", "model", "metric", "score", "95 % from", "to"), tasks)
    failed = [row for row in rows if row.error is not None]
    for row in failed:
        click.echo(f"missing: {row.model} on {row.dataset} ({row.protocol}): {row.error}", err=True)
    return 1 if failed else 0


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The rows as aligned text, nothing cut off."""
    cells = [list(columns), *([_cell(cell) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    right = [_numeric(rows, index) for index in range(len(columns))]
    lines = (
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    )
    return "\n".join(lines)


def _numeric(rows: Sequence[Sequence[object]], index: int) -> bool:
    return bool(rows) and all(isinstance(row[index], int | float) for row in rows)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------- progress


@contextmanager
def progress(unit: str) -> Iterator[Progress]:
    """Show how far something is, how fast it goes and how long it will still take.

    A live bar on a terminal; otherwise a log line at most every ten seconds.

    Args:
        unit: what is counted, in the plural, as in "images".
    """
    if sys.stderr.isatty():
        with _bar(unit) as report:
            yield report
    else:
        yield Lines(unit)


class Lines:
    """Progress as log lines. Another `what`, or counting that starts over, starts the clock again."""

    def __init__(
        self,
        unit: str,
        emit: Callable[[str], None] = logger.info,
        every_s: float = LINE_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.unit, self.emit, self.every_s, self.clock = unit, emit, every_s, clock
        self.what, self.done = "", 0
        self.first = self.shown = 0
        self.start = self.shown_at = clock()

    def __call__(self, what: str, done: int, total: int | None, note: str = "") -> None:
        now = self.clock()
        if what != self.what or done < self.done:
            self.what, self.first, self.shown = what, done, -1
            self.start = self.shown_at = now
        self.done = done
        if done == self.shown or (now - self.shown_at < self.every_s and done != total):
            return
        self.shown, self.shown_at = done, now
        rate = (done - self.first) / (now - self.start) if now > self.start else 0.0
        self.emit(f"{what}: {describe(done, total, self.unit, rate)}{', ' if note else ''}{note}")


def training_progress(progress: Progress) -> Callable[[int, dict[str, float]], None]:
    """What to call with the metrics of a training step, so that they are shown as progress."""

    def emit(step: int, record: dict[str, float]) -> None:
        scores = {name.removeprefix("knn/top1_"): score for name, score in record.items() if name.startswith("knn/")}
        if scores:
            shown = ", ".join(f"{name} {100 * score:.1f} %" for name, score in scores.items())
            logger.info("step %d: kNN top-1 %s", step, shown)
            return
        total = round(step / record["progress"])
        progress("training", step, total, f"loss {record['loss']:.4f}, {record['images_per_s']:.0f} images/s")

    return emit


def describe(done: int, total: int | None, unit: str, rate: float) -> str:
    """`done` of `total`, units per second, time left: "1,200 of 6,000 images, 400 images/s, 12 s left"."""
    of = "" if total is None else f" of {total:,}"
    speed = f", {rate:.3g} {unit}/s" if rate > 0 else ""
    left = f", {duration((total - done) / rate)} left" if total is not None and rate > 0 and done < total else ""
    return f"{done:,}{of} {unit}{speed}{left}"


def duration(seconds: float) -> str:
    """Seconds as people say them: "42 s", "3 min 05 s", "2 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@contextmanager
def _bar(unit: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit + "{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks = {}

        def report(what: str, done: int, total: int | None, note: str = "") -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=None, note="")
            task = tasks[what]
            speed = bars.tasks[task].speed
            words = [f"{speed:.3g} {unit}/s" if speed else "", note]
            bars.update(task, completed=done, total=total, note="".join(f", {word}" for word in words if word))

        yield report
