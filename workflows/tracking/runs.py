"""Runs in MLflow: the parent of a pipeline run, its children, and what is logged to them.

Runs are found again by tags, so that a stage that is started again continues its run. Where Kubeflow Pipelines
has made runs (MLFLOW_RUN_ID, KFP_MLFLOW_CONFIG), those are used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import Any, Literal, Self

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from unic_core.config import RunConfig, dump_config
from unic_core.errors import UnicError
from unic_core.provenance import git_commit
from workflows.spool import Point, RejectedError, Spool
from workflows.tracking.kubeflow import kubeflow_tags, kubeflow_url
from workflows.tracking.server import (
    client,
    experiment_id,
    find_run,
    persist,
    redact,
    sentences,
    tracking_uri,
)

log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]
PARAM_LENGTH = 6000  # MLflow's limits
PARAMS_PER_REQUEST = 100
DIGEST_LENGTH = 36
FLUSH_SECONDS = 30.0
HURRY_SECONDS = 3.0  # what a killed process may still spend


class Run:
    """One MLflow run. Metrics go through a spool; nothing here fails a training because the server is away."""

    def __init__(self, run_id: str, spool_dir: Path | None = None) -> None:
        self.run_id = run_id
        self.spool_dir = (spool_dir or _default_spool()).absolute()
        self._spool: Spool | None = None
        self._monitor: SystemMetricsMonitor | None = None

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of one step: a write to a local file, about 0.1 ms."""
        self._opened().add(step, values)

    def unsent(self) -> bytes:
        """Metrics that the server has not taken yet, as lines for `adopt`."""
        return self._opened().unsent()

    def adopt(self, lines: bytes) -> None:
        """Take over metrics that were not sent from another machine."""
        if lines:
            self._opened().adopt(lines)

    def _opened(self) -> Spool:
        if self._spool is None:
            self._spool = Spool(self.spool_dir / f"{self.run_id}.jsonl", _sender(self.run_id))
        return self._spool

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Record parameters, nested ones under dotted names. One that was recorded before keeps its value."""
        prefix = "unic." if _injected() else ""  # Kubeflow logs parameters under the plain names
        flat = {prefix + key: value for key, value in _flatten(values).items()}
        persist("all parameters", lambda: self._log_params(flat))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        entities = [RunTag(key, redact(value)) for key, value in tags.items()]
        persist("all tags", lambda: client().log_batch(self.run_id, tags=entities))

    def log_artifacts(self, files: Mapping[str, bytes | Path]) -> None:
        """Store files under relative names such as `report/index.html`."""
        wrong = [n for n in files if PurePosixPath(n).is_absolute() or ".." in PurePosixPath(n).parts]
        if wrong:
            raise UnicError(f"{wrong[0]!r} is no name of an artifact; use a relative path without '..'")
        with tempfile.TemporaryDirectory(prefix="unic-artifacts-") as directory:
            for name, content in files.items():
                target = Path(directory, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    target.write_bytes(content)
                else:
                    target.symlink_to(content.absolute())
            persist("all artifacts", lambda: client().log_artifacts(self.run_id, directory))

    def log_dataset(self, name: str, uri: str, split: str, fingerprint: str, context: str) -> None:
        """Record a data set as input; `context` is `training` or `evaluation`."""
        kind = "s3" if uri.startswith("s3://") else "local"
        source = json.dumps({"uri": redact(uri)})
        profile = json.dumps({"split": split, "fingerprint": fingerprint})
        data = Dataset(name, fingerprint[:DIGEST_LENGTH], kind, source, profile=profile)
        tags = [InputTag("mlflow.data.context", context), InputTag("split", split)]
        persist(f"the data set {name}", lambda: client().log_inputs(self.run_id, [DatasetInput(data, tags)]))

    def watch_system(self) -> None:
        """Log CPU, memory, disk, network and GPU use of this machine in the background, until `close`."""
        if self._monitor is None:
            self._monitor = SystemMetricsMonitor(self.run_id, tracking_uri=tracking_uri(), resume_logging=True)
            self._monitor.start()

    def flush(self, timeout: float = FLUSH_SECONDS) -> bool:
        """True when every metric so far has arrived at the server within `timeout` seconds."""
        return self._spool is None or self._spool.flush(timeout)

    def close(self, timeout: float = FLUSH_SECONDS) -> None:
        """Send what is left and end the background threads. The run's status is not touched."""
        spool, monitor = self._spool, self._monitor
        self._spool = self._monitor = None
        if monitor is not None and timeout > HURRY_SECONDS:  # its thread ends with the run or the process anyway
            monitor.finish()
        if spool is not None:
            spool.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _log_params(self, flat: Mapping[str, str]) -> None:
        known = client().get_run(self.run_id).data.params
        for key in sorted(key for key in flat.keys() & known.keys() if flat[key] != known[key]):
            log.warning("MLflow keeps %s of run %s at %s; it is %s now", key, self.run_id, known[key], flat[key])
        new = [Param(key, value) for key, value in flat.items() if key not in known]
        for first in range(0, len(new), PARAMS_PER_REQUEST):
            client().log_batch(self.run_id, params=new[first : first + PARAMS_PER_REQUEST])


def attach(run_id: str, spool_dir: Path | None = None, system_metrics: bool = False) -> Run:
    """A run that exists, for a process that only adds to it (a training worker). Asks the server nothing.

    Metrics that an earlier process left in `spool_dir` (by default UNIC_SPOOL, or below the home directory) are sent
    with the next ones.
    """
    run = Run(run_id, spool_dir)
    if system_metrics:
        run.watch_system()
    return run


def parent_run(config: RunConfig, stage: str = "pipeline") -> str:
    """Id of the run of the whole pipeline: that of Kubeflow, else the one tagged with the config's name, else new.

    Raises:
        UnicError: MLflow cannot be reached or refuses.
    """
    tags = {"unic.run": config.name, "stage": stage}
    with sentences():
        run_id = _injected_parent()
        if run_id is None:
            experiment = experiment_id(config.tracking.experiment)
            run_id = find_run(experiment, tags)
        if run_id is None:
            made = tags | _source() | _note()
            run_id = client().create_run(experiment, tags=made, run_name=config.name).info.run_id
        elif not _injected():
            _reopen(run_id)
        assert run_id is not None  # noqa: S101
        run = Run(run_id)
        run.log_params(config.model_dump(mode="json"))
        run.set_tags(tags | _describe(config) | kubeflow_tags(run_id))
    return run_id


def finish_parent(run_id: str, status: Status = "FINISHED", patience: float | None = None) -> None:
    """End the parent run; one that Kubeflow made is left to Kubeflow."""
    if not _injected():
        persist(f"the end of run {run_id}", lambda: client().set_terminated(run_id, status), patience)


def reuse(parent_id: str, run_id: str) -> None:
    """Show that this run of the pipeline took a stage from the run `run_id`: one of its own, or of an earlier one."""
    Run(parent_id).set_tags({"unic.distill_run": run_id})
    Run(run_id).set_tags(kubeflow_tags(parent_id))


@contextlib.contextmanager
def child_run(
    config: RunConfig,
    parent_id: str,
    name: str,
    tags: Mapping[str, str] | None = None,
    spool_dir: Path | None = None,
) -> Iterator[Run]:
    """The run of one stage, found by name below its parent or made; ends with the status that fits.

    FINISHED, FAILED after an exception, KILLED after Ctrl-C or SIGTERM (which unwinds the stack in the main thread
    unless somebody else handles it). What is not FINISHED ends the parent too; the next attempt opens both again.

    Raises:
        UnicError: MLflow cannot be reached or refuses, at the beginning.
    """
    with sentences():
        run_id = _find_child(config, parent_id, name)
        run = Run(run_id, spool_dir)
        own = {"unic.run": config.name, "unic.child": name, "unic.parent": parent_id}
        run.set_tags(own | kubeflow_tags(parent_id) | dict(tags or {}))
    with _sigterm_unwinds():
        try:
            if config.tracking.system_metrics:
                run.watch_system()
            yield run
        except BaseException as error:
            status = _status(error)
            persist(f"the end of run {run_id}", lambda: client().set_terminated(run_id, status), HURRY_SECONDS)
            run.close(HURRY_SECONDS)
            if status != "FINISHED":
                finish_parent(parent_id, status, HURRY_SECONDS)
            raise
        run.close()
        persist(f"the end of run {run_id}", lambda: client().set_terminated(run_id, "FINISHED"))


def _find_child(config: RunConfig, parent_id: str, name: str) -> str:
    injected = _injected_task()
    if injected is not None and client().get_run(injected).data.tags.get("unic.child", name) == name:
        client().set_tag(injected, "mlflow.runName", name)
        return injected
    experiment = client().get_run(parent_id).info.experiment_id
    run_id = find_run(experiment, {"unic.parent": parent_id, "unic.child": name})
    if run_id is None:
        tags = {"mlflow.parentRunId": injected or parent_id, "unic.child": name, "unic.parent": parent_id}
        run_id = str(client().create_run(experiment, tags=tags | _source(), run_name=name).info.run_id)
    else:
        _reopen(run_id)
    return run_id


def _reopen(run_id: str) -> None:
    if client().get_run(run_id).info.status != "RUNNING":
        client().update_run(run_id, status="RUNNING")


def _status(error: BaseException) -> Status:
    if isinstance(error, KeyboardInterrupt):
        return "KILLED"
    if isinstance(error, SystemExit):
        if error.code in {None, 0}:
            return "FINISHED"
        return "KILLED" if error.code in {128 + signal.SIGTERM, 128 + signal.SIGINT} else "FAILED"
    return "FAILED"


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM raises SystemExit(143) instead of ending the process on the spot."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def unwind(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the ending
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


# ---------------------------------------------------------------- runs made by Kubeflow Pipelines


def _injected() -> bool:
    return bool(os.environ.get("MLFLOW_RUN_ID"))


def _injected_parent() -> str | None:
    """Kubeflow's run of the pipeline, else the run that MLFLOW_RUN_ID names."""
    try:
        settings = json.loads(os.environ.get("KFP_MLFLOW_CONFIG") or "{}")
        parent = settings.get("parentRunId")
    except (ValueError, AttributeError):
        raise UnicError("KFP_MLFLOW_CONFIG is not a JSON object; unset it or correct it") from None
    return parent or os.environ.get("MLFLOW_RUN_ID") or None


def _injected_task() -> str | None:
    """The run that Kubeflow made for this step."""
    task = os.environ.get("MLFLOW_RUN_ID") or None
    return task if task != _injected_parent() else None


# ---------------------------------------------------------------- what is logged


def _sender(run_id: str) -> Callable[[Sequence[Point]], None]:
    def send(points: Sequence[Point]) -> None:
        metrics = [Metric(point.key, point.value, point.timestamp, point.step) for point in points]
        try:
            client().log_batch(run_id, metrics=metrics)
        except MlflowException as error:
            if error.get_http_status_code() == 400:
                raise RejectedError(str(error)) from error
            raise

    return send


def _flatten(values: Any, path: str = "") -> dict[str, str]:
    if isinstance(values, Mapping | list | tuple) and values:
        items = values.items() if isinstance(values, Mapping) else enumerate(values)
        return {k: v for key, value in items for k, v in _flatten(value, f"{path}.{key}" if path else str(key)).items()}
    text = values if isinstance(values, str) else json.dumps(values)
    return {path: redact(text)[:PARAM_LENGTH]}


def _describe(config: RunConfig) -> dict[str, str]:
    recipe = hashlib.sha256(dump_config(config).encode()).hexdigest()
    names = ", ".join(f"{teacher.name} ({teacher.model})" for teacher in config.teachers)
    return {"teachers": names, "student": config.student.model, "recipe_sha256": recipe}


def _source() -> dict[str, str]:
    commit = git_commit()
    found = {"mlflow.source.name": "unic", "mlflow.source.type": "LOCAL"}
    return found | ({"mlflow.source.git.commit": commit} if commit else {})


def _note() -> dict[str, str]:
    """The description of a new parent run, which MLflow shows as Markdown."""
    url = kubeflow_url()
    return {"mlflow.note.content": f"[Run in Kubeflow]({url})"} if url else {}


def _default_spool() -> Path:
    return Path(os.environ.get("UNIC_SPOOL") or Path.home() / ".cache" / "unic" / "spool")
