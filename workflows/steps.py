"""The stages of a run as plain functions of (config, URIs). The command line, the pipeline's components and the
tests all call these; nothing else does the work.

    <root>/datasets/<name>/<fingerprint>/   prepared images
    <root>/runs/<run>/checkpoints/          what training continues from
    <root>/runs/<run>/student/              the student in timm's layout
    <root>/runs/<run>/distilled.yaml        the config it was made from, written last
    <root>/runs/<run>/tracking.json         where MLflow has its curves
    <root>/runs/<run>/rows/<probe>.json     results of one data set, all models
    <root>/runs/<run>/report/               index.html, report.md, pictures, rows
    <root>/cache/rows/<key>.json            results of teachers, shared by all runs
"""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unic_core import lease
from unic_core.config import RunConfig, dump_config
from unic_core.errors import OutageError, UnicError
from unic_core.history import Record, read_history
from unic_core.storage import Store, join, open_store

if TYPE_CHECKING:  # `unic demo` and `unic pipeline run` only start these stages: they stay light
    from unic_core.evals.results import ResultRow

log = logging.getLogger(__name__)

DISTILLED, TRACKING = "distilled.yaml", "tracking.json"

Progress = Callable[[str, int, int | None], None]
Say = Callable[[str], None]


def _quiet(*_: object) -> None:
    """The default of every callback: say nothing."""


def run_uri(config: RunConfig, root: str) -> str:
    """Where everything of one run lies."""
    return join(root, "runs", config.name)


def prepare(config: RunConfig, root: str, progress: Progress = _quiet, workers: int | None = None) -> dict[str, str]:
    """Make every data set of `config.datasets` below `root`; returns their URIs by name. A repeat does nothing.

    `workers` processes do it, by default one per processor. A set that training does not need may fail: it is left
    out with a warning, `evaluate` tries it again, and its probes say what is wrong with it.
    """
    from unic_core.data.prepare import prepare_dataset

    needed = {mix.dataset for mix in config.data.train}
    if config.evaluation.knn_every is not None:
        first = config.evaluation.probes[0]
        needed |= {first.dataset, first.trained_on}
    uris = {}
    for dataset in config.datasets:
        try:
            uris[dataset.name] = prepare_dataset(dataset, root, partial(progress, dataset.name), workers)
        except OutageError:
            raise
        except UnicError as error:
            if dataset.name in needed:
                raise
            log.warning("data set %s cannot be prepared, its probes will fail: %s", dataset.name, error)
    return uris


def check(config: RunConfig) -> None:
    """UnicError for what can be told of a config without data: what is evaluated, models, the teachers' files."""
    from unic_core.config.evaluation import check_probes, check_tasks
    from unic_core.task import check_models

    check_probes(config.evaluation.probes, config.datasets)
    check_tasks(config.evaluation.tasks.values(), config.datasets)
    check_models(config, Path(config.data.cache) if config.data.cache else None)


def distill(
    config: RunConfig,
    root: str,
    datasets: dict[str, str],
    say: Say = _quiet,
    emit: Callable[[int, Record], None] = _quiet,
) -> str:
    """Train the student, or continue where an earlier attempt ended; returns the URI of the run.

    Raises:
        UnicError: a data set, teacher or service is not as the config says. Found before training starts.
    """
    from unic_core.checkpoint import check_config, newest_state
    from unic_core.session import training_sets
    from unic_core.teachers import resolve
    from workflows import tracking
    from workflows.ray_train import run_distillation

    specs = [resolve(teacher) for teacher in config.teachers]
    check(config)
    sets = training_sets(config, datasets, Path(config.data.cache) if config.data.cache else None)
    tracking.check_reachable()
    for teacher, spec in zip(config.teachers, specs, strict=True):
        say(f"teacher {teacher.name}: {spec.id}, license {spec.license}")
    run = run_uri(config, root)
    store = open_store(run)
    with lease.hold(store, config.name, say, lost=lambda: os.kill(os.getpid(), signal.SIGTERM)):
        store.sweep()
        state = newest_state(store)
        if state is not None:
            check_config(state, config)
        text = dump_config(config).encode()
        store.put("config.yaml", text)
        parent = tracking.parent_run(config)
        tracking.attach(parent).log_artifacts({"config.yaml": text})
        with tracking.child_run(config, parent, "distill") as child:
            record = {"parent": parent, "distill": child.run_id, "url": tracking.run_url(child.run_id)}
            store.put(TRACKING, json.dumps(record).encode())
            for mix, dataset in zip(config.data.train, sets, strict=True):
                child.log_dataset(mix.dataset, dataset.uri, mix.split, dataset.fingerprint, "training")
            run_distillation(config, datasets, run, child.run_id, emit, say)
            with tempfile.TemporaryDirectory() as directory:
                for key in store.list("student/"):
                    store.download(key, Path(directory) / key.removeprefix("student/"))
                tracking.log_student(parent, Path(directory), config)
        store.put(DISTILLED, text)
    return run


def probe_groups(config: RunConfig) -> list[str]:
    """The fan-out: each data set that classifiers are trained on, with all test sets that use them; then the tasks.

    Raises:
        UnicError: there is nothing to evaluate, or a probe names a data set or split that is not prepared.
    """
    from unic_core.config.evaluation import check_probes

    check_probes(config.evaluation.probes, config.datasets)
    groups = [*dict.fromkeys(probe.fit for probe in config.evaluation.probes), *config.evaluation.tasks]
    if not groups:
        raise UnicError(
            f"config {config.name}: evaluation.probes is empty; name at least one data set there, or in segmentation, "
            "depth or zeroshot"
        )
    return groups


def evaluate(
    config: RunConfig, root: str, probe: str, datasets: dict[str, str], run: str, say: Say = _quiet
) -> list[ResultRow]:
    """Probe student, teachers and a random student with classifiers trained on the data set `probe`.

    A name of `evaluation.tasks` is segmentation, depth or zero-shot classification instead.
    The rows go to `<run>/rows/<probe>.json`. What fails becomes a row with an error.

    Raises:
        UnicError: there is no such probe, or the run has no student yet.
    """
    from unic_core.evals.results import dump_rows
    from workflows import tracking
    from workflows.evaluation import evaluate_group
    from workflows.tasks import evaluate_task

    groups = probe_groups(config)
    if probe not in groups:
        raise UnicError(f"config {config.name} trains no probe on {probe!r}; choose from {', '.join(groups)}")
    store = open_store(run)
    if not store.exists("student/config.json"):
        raise UnicError(f"{run} has no student yet; run `unic distill` first")
    tracking.check_reachable()
    with tracking.child_run(config, tracking.parent_run(config), f"probe-{probe}") as child:
        task = config.evaluation.tasks.get(probe)
        rows = (evaluate_task if task else evaluate_group)(config, root, probe, datasets, run, say)
        tested = {p.label: (p.dataset, p.test_split) for p in config.evaluation.probes}
        if task:
            tested = {task.label: (task.dataset, task.test_split)}
        for name, fingerprint in {row.dataset: row.dataset_fingerprint for row in rows if not row.error}.items():
            dataset, split = tested[name]
            child.log_dataset(name, datasets.get(dataset, dataset), split, fingerprint, "evaluation")
        scores = {f"{r.protocol}/{r.dataset}/{r.model.replace(' ', '-')}/{r.metric}": r.score for r in rows}
        child.log_metrics(0, {name: score for name, score in scores.items() if score is not None})
        child.set_tags({f"error.{row.dataset}.{row.model}": row.error for row in rows if row.error})
    store.put(f"rows/{probe}.json", dump_rows(rows).encode())
    return rows


def report(config: RunConfig, run: str) -> dict[str, float]:
    """Compare the student with its teachers from the rows of all probes; writes and tracks the report.

    Returns:
        The student's scores, as `unic_core.report.Report` names them.

    Raises:
        UnicError: there are no rows yet.
    """
    from unic_core.cost import read_cost
    from unic_core.evals.results import dump_rows
    from unic_core.report import build_report
    from workflows import tracking

    store = open_store(run)
    rows = read_rows(store)
    if not rows:
        raise UnicError(f"{run} has no results yet; run `unic evaluate` first")
    parent = tracking.parent_run(config)
    if distilled := tracking_record(run).get("distill"):
        tracking.reuse(parent, distilled)
    pages = {"Run in MLflow": tracking.run_url(parent), "Run in Kubeflow": tracking.kubeflow_url()}
    links = {name: address for name, address in pages.items() if address}
    result = build_report(rows, config, read_history(store), links, read_cost(store))
    files = {
        "index.html": result.html.encode(),
        "report.md": result.markdown.encode(),
        "rows.csv": result.csv.encode(),
        "rows.json": dump_rows(rows).encode(),
        **result.pngs,
    }
    for name, data in files.items():
        store.put(f"report/{name}", data)
    tracking.log_report(config, parent, files, result.metrics, result.tags)
    return result.metrics


def promote(config: RunConfig, missing: Sequence[str] = ()) -> str:
    """Make the student the champion of the model registry if it beats the present one; ends the run in MLflow.

    Args:
        missing: results without which the run counts as failed.

    Returns:
        One sentence that says what happened and why.

    Raises:
        UnicError: there are such results. Nothing is promoted then.
    """
    from workflows import tracking

    parent = tracking.parent_run(config)
    if missing:
        tracking.finish_parent(parent, "FAILED")
        raise UnicError(
            f"{len(missing)} result(s) are missing: {', '.join(missing)}; the report says why. Mend the cause and run "
            "again: what is there is kept"
        )
    said = tracking.promote(config, parent)
    tracking.finish_parent(parent)
    return said


def tracking_record(run: str) -> dict[str, Any]:
    """Ids of the runs in MLflow that the run at the URI `run` was distilled under, and its page; empty before that."""
    try:
        return dict(json.loads(open_store(run).get(TRACKING)))
    except FileNotFoundError:
        return {}


def is_distilled(config: RunConfig, run: str) -> bool:
    """Whether the run at the URI `run` has a student that was made from this very config."""
    try:
        return open_store(run).get(DISTILLED) == dump_config(config).encode()
    except FileNotFoundError:
        return False


def read_rows(store: Store) -> list[ResultRow]:
    """All result rows of a run."""
    from unic_core.evals.results import load_rows

    keys = [key for key in store.list("rows/") if key.endswith(".json")]
    return [row for key in keys for row in load_rows(store.get(key), f"{store.uri}/{key}")]
