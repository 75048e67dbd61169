"""What the pipeline's components do inside their container: plain values in, one step, plain values out.

`workflows.pipeline.definition` declares the same functions to Kubeflow; their bodies are in this module so that they
are typed, tested and part of the image. Nothing here imports kfp.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from unic_core import __version__
from unic_core.config import dump_config, load_config
from unic_core.errors import UnicError
from unic_core.storage import join, open_store, read_uri
from workflows import console, steps
from workflows.launch.manifest import PATIENCE_S
from workflows.patience import patiently
from workflows.request import choose_datasets, read_request
from workflows.termination import last_words

if TYPE_CHECKING:  # a step that only waits stays light
    from unic_core.config import RunConfig
    from unic_core.evals.results import ResultRow
    from workflows.confusion import Confusion

logger = logging.getLogger(__name__)

T = TypeVar("T")
Metadata = dict[str, Any]

POD = "KFP_POD_NAME"  # what Kubeflow tells the pod of a step


@contextmanager
def step(name: str, code_version: str) -> Iterator[None]:
    """The frame of every component's process: log lines that name the step, its duration, errors as sentences.

    SIGTERM is Ctrl-C inside.

    Args:
        name: what stands in brackets before every line, as in "evaluate digits".
        code_version: version of the package that compiled the pipeline. It is in every component's inputs, so
            that results cached by other code are not used.
    """
    console.show_logs(prefix=f"[{name}] ", err=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if code_version != __version__:
        logger.warning("the pipeline was compiled by unic %s, the image has %s", code_version, __version__)
    begin = time.monotonic()
    try:
        yield
        logger.info("done in %s", console.duration(time.monotonic() - begin))
    except UnicError as error:
        logger.info("error: %s", error)
        last_words(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        logger.info("stopped")
        sys.exit(130)


def in_step(name: str, code_version: str, body: Callable[[], T]) -> T:
    """The body inside its frame. In a cluster it waits for S3 and MLflow to come back: nobody else tries it again."""
    with step(name, code_version):
        return patiently(body, PATIENCE_S if POD in os.environ else 0.0)


@dataclass(frozen=True)
class Prepared:
    """What the other steps need to know."""

    config: str
    """URI of the resolved config; another config has another one, which is what later steps are cached by."""
    datasets: dict[str, str]
    """URI of every prepared data set, by name."""
    probes: list[str]
    """Data sets to compare on, at least one."""
    gpus: str
    """GPUs of an evaluate step: one where the recipe trains on GPUs."""
    metadata: Metadata


def prepare(parameters: Mapping[str, Any], code_version: str) -> Prepared:
    """Check all parameters of the run, resolve and store its config, prepare its data sets.

    Args:
        parameters: fields of `workflows.request.PipelineRequest`.
    """

    def body() -> Prepared:
        request = read_request(parameters)
        if request.distill_launcher == "local" and POD in os.environ:
            raise UnicError(
                "distill_launcher is local, but a step has no room to train in; choose pytorchjob or rayjob"
            )
        config = request.config()
        chosen = choose_datasets(config, request.evaluate_datasets)
        steps.check(config)
        with console.progress("images") as progress:
            datasets = steps.prepare(config, request.storage_root, progress)
        text = dump_config(config).encode()
        key = f"{config.name}-{hashlib.sha256(text).hexdigest()[:12]}.yaml"
        configs = join(request.storage_root, "configs")
        open_store(configs).put(key, text)
        metadata = {f"dataset/{name}": uri for name, uri in datasets.items()}
        metadata |= {f"license/{dataset.name}": dataset.license for dataset in config.datasets}
        uri = join(configs, key)
        gpus = "1" if config.cluster.gpus_per_worker else "0"
        return Prepared(uri, datasets, chosen, gpus, {"run": config.name, "config": uri, **metadata})

    return in_step("prepare", code_version, body)


def distill(
    config: str,
    datasets: dict[str, str],
    storage_root: str,
    launcher: str,
    image: str,
    pod_memory: str,
    workers_per_pod: int,
    code_version: str,
    student: str,
) -> tuple[str, Metadata]:
    """Distill the student (or continue) and wait for it; the model card goes to the file `student`.

    Args:
        config: URI of the resolved config.
        launcher: `pytorchjob` or `rayjob` trains in pods of their own, `local` in this process.
        image, pod_memory, workers_per_pod: of the training pods.

    Returns:
        URI of the run; metadata of the model artifact.
    """

    def body() -> tuple[str, Metadata]:
        resolved = load_config(config)
        run = steps.run_uri(resolved, storage_root)
        if steps.is_distilled(resolved, run):
            logger.info("the student is there already: %s/student", run)
        elif launcher == "local":
            with console.progress("steps") as progress:
                steps.distill(resolved, storage_root, datasets, logger.info, console.training_progress(progress))
        else:
            from workflows.launch.step import follow_job, settings_of_step

            launch = settings_of_step(backend=launcher, image=image, memory=pod_memory, workers_per_pod=workers_per_pod)
            follow_job(launch, resolved, storage_root, logger.info)
            if not steps.is_distilled(resolved, run):
                raise UnicError(f"the job ended well, but {run} has no student; delete the job and run again")
        place, tracked = join(run, "student"), steps.tracking_record(run)
        _write(student, read_uri(join(place, "README.md")))
        return run, {
            "uri": place,
            "run": resolved.name,
            "model": resolved.student.model,
            "image_size": resolved.student.image_size,
            "teachers": ", ".join(teacher.name for teacher in resolved.teachers),
            "mlflow_run": tracked.get("distill", ""),
            "mlflow_url": tracked.get("url") or "",
            "framework": "timm",
            "format": "safetensors",
        }

    return in_step("distill", code_version, body)


def evaluate(
    config: str, datasets: dict[str, str], run: str, dataset: str, storage_root: str, code_version: str
) -> tuple[str, Confusion | None]:
    """Probe the student, its teachers and a random student on one data set.

    Whatever fails is a row with an error, so that the other data sets and the report go on.

    Returns:
        The rows, shortened, as JSON: what the report waits for. The student's confusion matrix, where it was probed.
    """

    def body() -> tuple[str, Confusion | None]:
        resolved = load_config(config)
        rows = steps.evaluate(resolved, storage_root, dataset, datasets, run, logger.info)
        for row in (row for row in rows if row.error):
            logger.warning("%s on %s (%s): %s", row.model, row.dataset, row.protocol, row.error)
        probed = any(row.role == "student" and row.protocol == "knn" and row.error is None for row in rows)
        matrix = _confusion(resolved, storage_root, dataset, datasets, run) if probed else None
        return json.dumps([brief(row) for row in rows]), matrix

    return in_step(f"evaluate {dataset}", code_version, body)


def _confusion(config: RunConfig, root: str, dataset: str, datasets: dict[str, str], run: str) -> Confusion | None:
    """A picture for the page of the run; nothing fails for its sake."""
    from workflows.confusion import confusion

    try:
        return confusion(config, root, dataset, datasets, run)
    except Exception as error:
        logger.warning("no confusion matrix of %s: %s", dataset, error)
        return None


def report(
    config: str, run: str, rows: Sequence[str], code_version: str, html: str, markdown: str
) -> tuple[list[str], dict[str, float]]:
    """Build the report from the stored rows; its two texts go to the files `html` and `markdown`.

    Args:
        rows: what `evaluate` returned for each data set.

    Returns:
        What is missing, as in "lite0 on digits"; the finite metrics, among them `<dataset>/top1` (the student's) and
        `<dataset>/top1/<model>`.
    """

    def body() -> tuple[list[str], dict[str, float]]:
        results = [row for part in rows for row in json.loads(part)]
        missing = list(dict.fromkeys(f"{row['model']} on {row['dataset']}" for row in results if row["error"]))
        logger.info("%d results%s", len(results), f", missing: {', '.join(missing)}" if missing else "")
        metrics = steps.report(load_config(config), run) | top1_by_model(results)
        store = open_store(join(run, "report"))
        _write(html, store.get("index.html"))
        _write(markdown, store.get("report.md"))
        return missing, {name: float(value) for name, value in sorted(metrics.items()) if math.isfinite(value)}

    return in_step("report", code_version, body)


def promote(config: str, missing: Sequence[str], fail_on_missing: bool, code_version: str) -> str:
    """Make the student the champion of the model registry if it is better; the run's last step.

    Args:
        missing: results that the report lacks.
        fail_on_missing: whether the run fails when there are any. Nothing is promoted then.

    Returns:
        One sentence about what happened.
    """

    def body() -> str:
        said = steps.promote(load_config(config), missing if fail_on_missing else ())
        logger.info("%s", said)
        return said

    return in_step("promote", code_version, body)


def brief(row: ResultRow) -> dict[str, Any]:
    """A result row without its details: a parameter has to stay small."""
    return row.model_dump(include={"model", "dataset", "protocol", "metric", "top1", "value", "error"})


def top1_by_model(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """`<dataset>/top1/<model>` of every model but the student, from the linear classifiers among shortened rows."""
    return {
        f"{row['dataset']}/top1/{row['model'].replace(' ', '-')}": row["top1"]
        for row in rows
        if row["top1"] is not None and row["protocol"] in {"logreg", "sgd"} and row["model"] != "student"
    }


def _write(path: str, data: bytes) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data)
