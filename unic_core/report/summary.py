"""What the rows say: who was measured where, who is best, and what is missing. Numbers only, no layout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from unic_core.config import RunConfig
from unic_core.errors import UnicError
from unic_core.evals.results import Group, Protocol, ResultRow, Role

PROTOCOLS: tuple[Protocol, ...] = ("logreg", "knn")
_TABLE: Mapping[Protocol, Protocol] = {"sgd": "logreg"}  # both are the linear probe, one per data set


class Model(NamedTuple):
    """A column of the comparison."""

    name: str
    role: Role


class Dataset(NamedTuple):
    """A line of the comparison."""

    name: str
    group: Group


class Mean(NamedTuple):
    """Mean top-1 over the data sets that were measured: `over` of `of`; None when it is over none."""

    value: float | None
    over: int
    of: int


class Gap(NamedTuple):
    """A result that should exist and doesn't, and why."""

    model: str
    dataset: str
    protocol: Protocol
    reason: str


@dataclass(frozen=True)
class Table:
    """All results of one protocol."""

    protocol: Protocol
    models: tuple[Model, ...]
    datasets: tuple[Dataset, ...]
    rows: Mapping[tuple[str, str], ResultRow]

    def row(self, model: Model, dataset: Dataset) -> ResultRow | None:
        """The row, also one with an error; None when there is none."""
        return self.rows.get((model.name, dataset.name))

    def top1(self, model: Model, dataset: Dataset) -> float | None:
        """The measured share; None when it failed or is missing."""
        row = self.row(model, dataset)
        return None if row is None else row.top1

    def best_teacher(self, dataset: Dataset) -> Model | None:
        """The teacher with the highest top-1, the first one among equals; None when no teacher was measured."""
        measured = [m for m in self.models if m.role == "teacher" and self.top1(m, dataset) is not None]
        return max(measured, key=lambda m: self.top1(m, dataset) or 0.0, default=None)

    def teachers_measured(self, dataset: Dataset) -> tuple[int, int]:
        """How many teachers have a result, and how many there are."""
        teachers = [m for m in self.models if m.role == "teacher"]
        return sum(self.top1(m, dataset) is not None for m in teachers), len(teachers)

    def relative(self, model: Model, dataset: Dataset) -> float | None:
        """Top-1 minus that of the best teacher."""
        best = self.best_teacher(dataset)
        own, theirs = self.top1(model, dataset), self.top1(best, dataset) if best else None
        return None if own is None or theirs is None else own - theirs

    def mean(self, model: Model, group: Group) -> Mean:
        """Mean over the sets of one group that this model was measured on."""
        values = [self.top1(model, d) for d in self.datasets if d.group == group]
        known = [v for v in values if v is not None]
        return Mean(sum(known) / len(known) if known else None, len(known), len(values))

    def log_odds(self, model: Model, group: Group) -> float | None:
        """Mean of log(p / (1 - p)) over the sets of one group, as t-ReX reports it; None unless all were measured.

        p is kept half an image away from 0 and 1, where the log-odds would be infinite.
        """
        values = []
        for row in (self.row(model, d) for d in self.datasets if d.group == group):
            if row is None or row.top1 is None or not row.n_test:
                return None
            p = min(max(row.top1, 0.5 / row.n_test), 1 - 0.5 / row.n_test)
            values.append(math.log(p / (1 - p)))
        return sum(values) / len(values) if values else None

    def mean_error(self, model: Model, group: Group) -> float | None:
        """Standard error of the mean top-1 over the sets of one group, over test images; None as in `log_odds`."""
        variances = []
        for row in (self.row(model, d) for d in self.datasets if d.group == group):
            if row is None or row.top1 is None or not row.n_test:
                return None
            variances.append(row.top1 * (1 - row.top1) / row.n_test)
        return math.sqrt(sum(variances)) / len(variances) if variances else None


@dataclass(frozen=True)
class Summary:
    """The comparison: one table per protocol (logistic regression first) over the same models and data sets."""

    student: Model
    tables: tuple[Table, ...]
    gaps: tuple[Gap, ...]

    @property
    def models(self) -> tuple[Model, ...]:
        return self.tables[0].models

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        return self.tables[0].datasets


def summarize(rows: Sequence[ResultRow], config: RunConfig) -> Summary:
    """Arrange rows of the probes by what the config asks for; anything else that was measured comes after it.

    Raises:
        UnicError: two rows for the same model, data set and protocol.
    """
    models, datasets = _models(rows, config), _datasets(rows, config)
    tables = tuple(table_of(rows, protocol, models, datasets) for protocol in PROTOCOLS)
    gaps = []
    for table in tables:
        for dataset in datasets:
            for model in models:
                found = table.row(model, dataset)
                if found is None:
                    gaps.append(Gap(model.name, dataset.name, table.protocol, "not evaluated"))
                elif found.error is not None:
                    gaps.append(Gap(model.name, dataset.name, table.protocol, found.error))
    return Summary(models[0], tables, tuple(gaps))


def table_of(
    rows: Sequence[ResultRow], protocol: Protocol, models: tuple[Model, ...], datasets: tuple[Dataset, ...]
) -> Table:
    """The rows of one protocol, those of SGD among the linear probe's.

    Raises:
        UnicError: two rows for the same model and data set.
    """
    index: dict[tuple[str, str], ResultRow] = {}
    for row in rows:
        if _TABLE.get(row.protocol, row.protocol) != protocol:
            continue
        key = (row.model, row.dataset)
        if key in index:
            raise UnicError(
                f"two {row.protocol} results of {row.model} on {row.dataset}; name every data set once in the probes"
            )
        index[key] = row
    return Table(protocol, models, datasets, index)


def _models(rows: Sequence[ResultRow], config: RunConfig) -> tuple[Model, ...]:
    """Student, teachers in the order of the config, random student."""
    found = {Model(row.model, row.role): None for row in rows}

    def of(role: Role, expected: Sequence[str]) -> list[Model]:
        others = [m for m in found if m.role == role and m.name not in expected]
        return [*(Model(name, role) for name in expected), *others]

    students = [m for m in found if m.role == "student"] or [Model("student", "student")]
    randoms = of("random", ())
    if config.evaluation.random_student and not randoms:
        randoms = [Model("random student", "random")]
    return (*students, *of("teacher", [teacher.name for teacher in config.teachers]), *randoms)


def _datasets(rows: Sequence[ResultRow], config: RunConfig) -> tuple[Dataset, ...]:
    """Transfer sets, then shift sets, in the order of the config."""
    asked = [Dataset(probe.label, probe.group) for probe in config.evaluation.probes]
    datasets = dict.fromkeys([*asked, *(Dataset(row.dataset, row.group) for row in rows)])
    return tuple(sorted(datasets, key=lambda d: d.group == "shift"))
