"""Who wins where, and by how much beyond chance: one model against each of the others, data set by data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from unic_core.evals.difference import Difference, Verdict, difference, mean_difference, other_images
from unic_core.report.cells import DASH, Cell, Grid, as_mean, count, difference_cell, percent
from unic_core.report.summary import Dataset, Model, Table


class Winner(NamedTuple):
    """The model with the highest top-1 on a data set, and those whose difference from it may be chance."""

    best: Model
    top1: float
    even: tuple[Model, ...]

    def __str__(self) -> str:
        """`b`, or `b (even: a, c)`."""
        return self.best.name + (f" (even: {', '.join(model.name for model in self.even)})" if self.even else "")


class Pair(NamedTuple):
    """A column of differences: `one` minus `other`."""

    title: str
    one: Model
    other: Model


class Tally(NamedTuple):
    """On how many data sets a model is better than another, even, and worse, beyond the 95 % interval."""

    better: int
    even: int
    worse: int


def duel(table: Table, one: Model, other: Model, dataset: Dataset) -> Difference | None:
    """`one` minus `other`; None where either was not measured, or both on different images."""
    own, theirs = table.row(one, dataset), table.row(other, dataset)
    if own is not None and theirs is not None and other_images(own, theirs):
        return None
    return difference(own, theirs)


def winner(table: Table, dataset: Dataset) -> Winner | None:
    """None when nothing was measured, or the rows are about different images."""
    scores = {m: top1 for m in table.models if (top1 := table.top1(m, dataset)) is not None}
    if not scores or different_images(table, dataset):
        return None
    best = max(scores, key=lambda m: scores[m])
    duels = {m: duel(table, best, m, dataset) for m in scores if m != best}
    return Winner(best, scores[best], tuple(m for m, d in duels.items() if d is not None and d.verdict == "even"))


def different_images(table: Table, dataset: Dataset) -> bool:
    """Whether two models were measured on different copies of the data set."""
    rows = [row for m in table.models if (row := table.row(m, dataset)) is not None and row.top1 is not None]
    return any(other_images(rows[0], row) for row in rows[1:])


def mean_duel(table: Table, one: Model, other: Model, datasets: Sequence[Dataset]) -> Difference | None:
    """Mean of the differences; None unless there is one on every data set."""
    found = [duel(table, one, other, dataset) for dataset in datasets]
    known = [d for d in found if d is not None]
    return mean_difference(known) if len(known) == len(datasets) else None


def tally(verdicts: Sequence[Verdict]) -> Tally:
    """Counts of the verdicts."""
    return Tally(verdicts.count("better"), verdicts.count("even"), verdicts.count("worse"))


def against_best(table: Table, student: Model) -> Mapping[Dataset, Difference]:
    """The student minus the best teacher of each data set where both were measured."""
    found = {}
    for dataset in table.datasets:
        best = table.best_teacher(dataset)
        difference_ = duel(table, student, best, dataset) if best else None
        if difference_ is not None:
            found[dataset] = difference_
    return found


def duel_grid(table: Table, pairs: Sequence[Pair], mean_over: Sequence[Dataset]) -> Grid:
    """Lines: data sets, the mean over `mean_over`, and how often. Columns: the winner, then the pairs."""
    lines = [[Cell(d.name), _winner_cell(table, d), *(_duel_cell(table, p, d) for p in pairs)] for d in table.datasets]
    empty = Cell("", "", "mean")
    if mean_over:
        means = [difference_cell(mean_duel(table, pair.one, pair.other, mean_over)) for pair in pairs]
        name = Cell("Mean", f"over {count(len(mean_over), 'transfer set')}", "mean")
        lines.append([name, empty, *map(as_mean, means)])
    tallies = []
    for pair in pairs:
        found = [duel(table, pair.one, pair.other, dataset) for dataset in table.datasets]
        won = tally([d.verdict for d in found if d is not None])
        tallies.append(Cell(f"{won.better} / {won.even} / {won.worse}", "", "mean"))
    lines.append([Cell("Better / even / worse", "", "mean"), empty, *tallies])
    return Grid(["Data set", "Winner", *(pair.title for pair in pairs)], lines)


def how_compared(table: Table, pairs: Sequence[Pair]) -> str:
    """A sentence on where the intervals come from."""
    every = [(pair.one, pair.other, dataset) for pair in pairs for dataset in table.datasets]
    found = [d for one, other, dataset in every if (d := duel(table, one, other, dataset)) is not None]
    if not found:
        return "No two results are about the same test images."
    paired = sum(d.paired for d in found)
    if paired == len(found):
        return "Intervals are paired: both models saw the same test images, which are resampled together."
    apart = (
        "both intervals are combined as if the models had seen different images, which makes them too wide rather than "
        "too narrow."
    )
    if paired == 0:
        return f"Intervals are not paired, because these results lack their hits image by image: {apart}"
    some = f"{paired} of {count(len(found), 'interval')} are paired (same test images, resampled together)"
    return f"{some}; for the others {apart}"


def _winner_cell(table: Table, dataset: Dataset) -> Cell:
    if different_images(table, dataset):
        return Cell(DASH, "different images", "missing")
    found = winner(table, dataset)
    if found is None:
        return Cell(DASH, "", "missing")
    even = f"; even: {', '.join(m.name for m in found.even)}" if found.even else ""
    return Cell(found.best.name, f"{percent(found.top1)}{even}")


def _duel_cell(table: Table, pair: Pair, dataset: Dataset) -> Cell:
    own, theirs = table.row(pair.one, dataset), table.row(pair.other, dataset)
    apart = own is not None and theirs is not None and other_images(own, theirs)
    return difference_cell(duel(table, pair.one, pair.other, dataset), "different images" if apart else "")
