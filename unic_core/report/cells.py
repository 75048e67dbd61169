"""What a report is made of before it becomes HTML or Markdown: words, and tables of cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from unic_core.evals.difference import Difference
from unic_core.evals.results import ResultRow

DASH, MINUS, TIMES, DELTA = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{GREEK CAPITAL LETTER DELTA}"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
_TONES = {"better": "good", "even": "", "worse": "bad"}


class Cell(NamedTuple):
    """Text with a small second line; `tone` is "", "best", "good", "bad", "missing" or "mean", or several of them."""

    text: str
    note: str = ""
    tone: str = ""


class Grid(NamedTuple):
    """A table: titles of the columns, then lines of cells; the first column names the line."""

    header: list[str]
    lines: list[list[Cell]]


class Section(NamedTuple):
    """A table with its title and a caption below; `kind` chooses how it is laid out."""

    title: str
    grid: Grid
    caption: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Document:
    """Everything a reader sees, apart from the pictures."""

    title: str
    headline: str
    sentences: list[str]
    sections: list[Section]
    links: Mapping[str, str] = field(default_factory=dict)
    config: str = ""  # YAML


def percent(share: float) -> str:
    """A share as a number of percent, as in "83.8"."""
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    """A difference of shares in percentage points with its sign."""
    return signed(100 * difference)


def signed(number: float) -> str:
    """One decimal and a sign; none for what rounds to zero."""
    text = f"{number:+.1f}"
    return "0.0" if text in {"-0.0", "+0.0"} else text.replace("-", MINUS)


def count(n: int, noun: str) -> str:
    """A number with its noun."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def score_cell(row: ResultRow | None, best: bool) -> Cell:
    """Top-1 with its interval, or why there is none."""
    if row is None or row.top1 is None:
        return Cell(DASH if row is None else "failed", "not evaluated" if row is None else "", "missing")
    interval = f"{percent(row.ci_low or 0.0)}{DASH}{percent(row.ci_high or 0.0)}"
    return Cell(percent(row.top1), interval, "best" if best else "")


def difference_cell(found: Difference | None, remark: str = "") -> Cell:
    """A difference in points with its interval; colored only when the interval leaves out 0."""
    if found is None:
        return Cell(DASH, remark, "missing")
    interval = f"{points(found.low)} to {points(found.high)}"
    return Cell(points(found.value), f"{interval}{f', {remark}' if remark else ''}", _TONES[found.verdict])


def as_mean(cell: Cell) -> Cell:
    """The cell on a line of means; it keeps its color."""
    return cell._replace(tone=f"mean {cell.tone}" if cell.tone in {"good", "bad"} else "mean")
