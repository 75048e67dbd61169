"""The numbers of a report under the names that MLflow and Kubeflow show them by."""

from __future__ import annotations

from unic_core.evals.difference import mean_difference
from unic_core.report import duels
from unic_core.report.summary import Summary, Table


def metrics_of(summary: Summary) -> dict[str, float]:
    """All metrics; `unic_core.report.Report` says what they are called."""
    student, probes = summary.student, summary.tables[0]
    metrics: dict[str, float] = {"probe/failed": float(len(summary.gaps))}
    for table in summary.tables:
        prefix = "probe" if table.protocol == "logreg" else "knn"
        for dataset in table.datasets:
            top1 = table.top1(student, dataset)
            if top1 is not None:
                metrics[f"{prefix}/{dataset.name}/top1"] = top1
                if table is probes:
                    metrics[f"{dataset.name}/top1"] = top1
    return metrics | _student_means(probes, summary) | _relative(probes, summary) | _models(probes)


def winners_of(summary: Summary) -> dict[str, str]:
    """Tags: `winner.<dataset>`, the model with the highest top-1, and behind it those that may be its equals."""
    tags = {}
    for dataset in summary.datasets:
        found = duels.winner(summary.tables[0], dataset)
        if found is not None:
            tags[f"winner.{dataset.name}"] = str(found)
    return tags


def _student_means(table: Table, summary: Summary) -> dict[str, float]:
    student = summary.student
    metrics = {}
    means = {
        "probe/mean_top1": table.mean(student, "transfer"),
        "probe/mean_top1_shift": table.mean(student, "shift"),
    }
    for name, mean in means.items():
        if mean.value is not None and mean.over == mean.of:
            metrics[name] = mean.value
    details = {
        "probe/mean_top1_error": table.mean_error(student, "transfer"),
        "probe/mean_log_odds": table.log_odds(student, "transfer"),
    }
    return metrics | {name: value for name, value in details.items() if value is not None}


def _relative(table: Table, summary: Summary) -> dict[str, float]:
    ahead = duels.against_best(table, summary.student)
    metrics = {}
    for dataset, found in ahead.items():
        metrics[f"relative/{dataset.name}"] = found.value
        metrics[f"relative_low/{dataset.name}"] = found.low
        metrics[f"relative_high/{dataset.name}"] = found.high
    transfer = [dataset for dataset in table.datasets if dataset.group == "transfer"]
    mean = mean_difference([ahead[d] for d in transfer]) if set(transfer) <= ahead.keys() else None
    if mean is not None:
        metrics |= {"relative/mean": mean.value, "relative_low/mean": mean.low, "relative_high/mean": mean.high}
    if ahead:
        won = duels.tally([found.verdict for found in ahead.values()])
        metrics |= {f"wins/{name}": float(number) for name, number in won._asdict().items()}
    return metrics


def _models(table: Table) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for model in table.models:
        prefix = f"models/{model.name.replace(' ', '-')}"
        scores = {f"{d.name}/top1": table.top1(model, d) for d in table.datasets}
        mean = table.mean(model, "transfer")
        scores["mean_top1"] = mean.value if mean.over == mean.of else None
        scores["mean_log_odds"] = table.log_odds(model, "transfer")
        metrics |= {f"{prefix}/{name}": value for name, value in scores.items() if value is not None}
    return metrics
