"""What the pipeline's components do inside their container: plain values in, one step, plain values out.

`workflows.pipeline` declares the same functions to Kubeflow; their bodies are in this module so that they are
typed, tested and part of the image. Nothing here imports kfp.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unic_core import __version__
from unic_core.config import RunConfig, dump_config, load_config
from unic_core.errors import UnicError
from unic_core.evals.results import ResultRow
from unic_core.storage import join, open_store, read_uri
from workflows import console, steps

logger = logging.getLogger(__name__)


@contextmanager
def step(name: str, code_version: str) -> Iterator[None]:
    """The frame of every component's process: log lines that name the step, SIGTERM as Ctrl-C, errors as sentences.

    Args:
        name: what stands in brackets before every line, as in "evaluate digits".
        code_version: version of the package that compiled the pipeline. It is in every component's inputs, so
            that results cached by other code are not used.
    """
    console.show_logs(prefix=f"[{name}] ", err=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if code_version != __version__:
        logger.warning("the pipeline was compiled by unic %s, the image has %s", code_version, __version__)
    try:
        yield
    except UnicError as error:
        logger.info("error: %s", error)
        sys.exit(2)
    except KeyboardInterrupt:
        logger.info("stopped")
        sys.exit(130)


def prepare(
    recipe: str, overrides: Sequence[str], run_name: str, probes: Sequence[str], storage_root: str, code_version: str
) -> tuple[str, dict[str, str], list[str]]:
    """Resolve and store the config, prepare its data sets.

    The config is stored under a name made of its content: a changed recipe gives another URI, which is what later
    steps are cached by.

    Returns:
        URI of the resolved config; data set name -> URI; names of the probes to run (never empty).
    """
    with step("prepare", code_version):
        names = [f"name={json.dumps(run_name)}"] if run_name else []
        config = load_config(recipe, [*overrides, *names])
        chosen = choose_probes(config, probes)
        steps.check(config)
        with console.progress("images") as progress:
            datasets = steps.prepare(config, storage_root, progress)
        text = dump_config(config).encode()
        key = f"{config.name}-{hashlib.sha256(text).hexdigest()[:12]}.yaml"
        configs = join(storage_root, "configs")
        open_store(configs).put(key, text)
        return join(configs, key), datasets, chosen


def distill(
    config_uri: str, datasets: dict[str, str], storage_root: str, code_version: str, card: str
) -> tuple[str, dict[str, str]]:
    """Distill the student (or continue); the model card goes to the file `card`.

    Returns:
        URI of the run; metadata of the model artifact.
    """
    with step("distill", code_version):
        config = load_config(config_uri)
        with console.progress("steps") as progress:
            metrics = console.training_progress(progress)
            run = steps.distill(config, storage_root, datasets, logger.info, metrics)
        student = join(run, "student")
        _write(card, read_uri(join(student, "README.md")))
        return run, {
            "uri": student,
            "model": config.student.model,
            "teachers": ", ".join(teacher.name for teacher in config.teachers),
        }


def evaluate(
    config_uri: str, datasets: dict[str, str], run: str, probe: str, storage_root: str, code_version: str
) -> str:
    """Probe student and teachers on one data set.

    Returns:
        The rows, shortened, as JSON: what the run's page shows and the report waits for.
    """
    with step(f"evaluate {probe}", code_version):
        rows = steps.evaluate(load_config(config_uri), storage_root, probe, datasets, run, logger.info)
        return json.dumps([brief(row) for row in rows])


def report(
    config_uri: str, run: str, rows: Sequence[str], code_version: str, html: str, markdown: str
) -> dict[str, float]:
    """Build the report from the stored rows; its two texts go to the files `html` and `markdown`.

    Args:
        rows: what `evaluate` returned for each probe.

    Returns:
        The finite metrics, among them `<dataset>/top1`.
    """
    with step("report", code_version):
        results = [row for part in rows for row in json.loads(part)]
        failed = [f"{row['model']} on {row['dataset']}" for row in results if row["error"]]
        logger.info("%d results%s", len(results), f", failed: {', '.join(failed)}" if failed else "")
        metrics = steps.report(load_config(config_uri), run, logger.info)
        store = open_store(join(run, "report"))
        _write(html, store.get("index.html"))
        _write(markdown, store.get("report.md"))
        return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def choose_probes(config: RunConfig, names: Sequence[str]) -> list[str]:
    """`names`, or every probe of the config when there are none; UnicError for an unknown one or nothing to probe."""
    known = steps.probe_groups(config)
    for name in names:
        if name not in known:
            raise UnicError(f"no probe {name!r} in the config {config.name}; choose from {', '.join(known)}")
    return list(dict.fromkeys(names)) or known


def brief(row: ResultRow) -> dict[str, Any]:
    """A result row without its details: a parameter has to stay small."""
    return row.model_dump(include={"model", "dataset", "protocol", "metric", "top1", "value", "error"})


def _write(path: str, data: bytes) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data)
