"""The student in the model registry: safetensors, never a pickle; `candidate`, and `champion` when it is better."""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from unic_core.config import RunConfig
from unic_core.errors import UnicError
from workflows.tracking.runs import Run
from workflows.tracking.server import client, read_artifact, sentences

if TYPE_CHECKING:
    from unic_core.evals.difference import Difference

WEIGHTS = "model.safetensors"
SCORE, ERROR = "probe/mean_top1", "probe/mean_top1_error"
SURE = 1.96  # standard errors of the difference: 95 %
CANDIDATE, CHAMPION = "candidate", "champion"
_PROBE = re.compile(r"probe/(.+)/top1")


@dataclass(frozen=True)
class Student:
    """A version in the model registry and the LoggedModel behind it."""

    model_id: str
    name: str
    version: str
    sha256: str

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


def log_student(
    parent_id: str, directory: Path, config: RunConfig, metrics: Mapping[str, float] | None = None
) -> Student:
    """Store an exported student as LoggedModel of the parent run, register it, give it the alias `candidate`.

    Args:
        parent_id: the run of the pipeline.
        directory: what `unic_core.export.save_student` wrote: `model.safetensors`, `config.json`, model card.
        config: of the run.
        metrics: scores to show beside the model.

    The same weights of the same run are registered once, however often this is called.

    Raises:
        UnicError: the directory holds no weights, or MLflow cannot be reached or refuses.
    """
    sha256 = _sha256(directory / WEIGHTS)
    name = config.tracking.registered_model
    with sentences():
        version = _find_version(name, parent_id, sha256)
        if version is None:
            model_id = _find_model(parent_id, sha256) or _upload(parent_id, directory, config, sha256)
            version = _register(name, parent_id, model_id, sha256, config.name)
        student = Student(version.tags["unic.model_id"], name, str(version.version), sha256)
        _log_scores(parent_id, metrics or {}, student.model_id)
        client().set_registered_model_alias(name, CANDIDATE, student.version)
    return student


def log_report(
    config: RunConfig,
    parent_id: str,
    files: Mapping[str, bytes | Path],
    metrics: Mapping[str, float],
    tags: Mapping[str, str] | None = None,
) -> None:
    """Store the report below `report/` of the parent run, and its scores there and with the run's student."""
    with sentences():
        candidate = _newest(config.tracking.registered_model, parent_id)
        _log_scores(parent_id, metrics, candidate.tags["unic.model_id"] if candidate else None)
    run = Run(parent_id)
    run.set_tags(tags or {})
    run.log_artifacts({f"report/{name}": content for name, content in files.items()})


def promote(config: RunConfig, parent_id: str) -> str:
    """Move the alias `champion` to this run's student if its mean top-1 is above the champion's beyond chance.

    Both must have been probed on the same data sets, and the 95 % interval of the difference must lie above 0. It is
    taken from the rows in both reports, image by image where these allow it; without rows, from the means and standard
    errors of the parent runs as if the two were measured on different images, which errs towards the champion.
    Returns one sentence that says what happened and why.
    """
    name = config.tracking.registered_model
    with sentences():
        candidate = _newest(name, parent_id)
        if candidate is None:
            raise UnicError(f"run {parent_id} has no student in the model registry; log one before promoting it")
        champion = _champion(name)
        scores = _scores(parent_id)
        what = f"{name} version {candidate.version}"
        if champion is not None and int(champion.version) == int(candidate.version):
            return f"{what} is the champion already"
        if SCORE not in scores:
            return f"{what} was not promoted: its run has no {SCORE}"
        theirs = _scores(champion.run_id) if champion is not None else {}
        if champion is None or SCORE not in theirs:
            client().set_registered_model_alias(name, CHAMPION, candidate.version)
            first = "first" if champion is None else "new"
            unknown = "" if champion is None else f"; version {champion.version} has none"
            return f"{what} is the {first} champion, with a mean top-1 of {scores[SCORE]:.4f}{unknown}"
        reason, found = _compare(parent_id, champion, scores, theirs)
        if found is None:
            return f"{what} was not promoted: {reason}"
        how = "image by image" if found.paired else "as if measured on different images"
        difference = f"by {found.value:+.4f} (95 % interval {found.low:+.4f} to {found.high:+.4f}, {how})"
        if found.verdict != "better":
            return (
                f"{what} was not promoted: its mean top-1 of {scores[SCORE]:.4f} does not beat the "
                f"{theirs[SCORE]:.4f} of champion version {champion.version} beyond chance; they differ {difference}"
            )
        client().set_registered_model_alias(name, CHAMPION, candidate.version)
    score = f"its mean top-1 of {scores[SCORE]:.4f}"
    return f"{what} is the new champion: {score} beats version {champion.version} {difference}"


def _compare(
    run_id: str, champion: ModelVersion, scores: Mapping[str, float], theirs: Mapping[str, float]
) -> tuple[str, Difference | None]:
    """The candidate's mean minus the champion's; or why the two can't be compared, and None."""
    from unic_core.evals.difference import Difference
    from unic_core.evals.results import load_rows
    from unic_core.report.compare import common_sets, compare_runs
    from unic_core.report.duels import different_images, mean_duel

    other = f"champion version {champion.version}"
    probes, others = _probes(scores), _probes(theirs)
    if probes != others:
        odd = ", ".join(sorted(probes ^ others))
        return f"{other} was probed on other data sets (the difference is {odd})", None
    rows = [read_artifact(run, "report/rows.json") for run in (run_id, champion.run_id)]
    if rows[0] and rows[1]:
        own, champions = (load_rows(text or b"", "report/rows.json") for text in rows)
        table = compare_runs({"candidate": own, "champion": champions}).tables[0]
        images = [dataset.name for dataset in table.datasets if different_images(table, dataset)]
        if images:
            return f"{other} was probed on other images of {', '.join(images)}", None
        one, another = table.models
        return "no data set was measured for both", mean_duel(table, one, another, common_sets(table))
    unknown = [run for run, known in (("its own run", scores), ("that of the champion", theirs)) if ERROR not in known]
    if unknown:
        return f"{' and '.join(unknown)} has no {ERROR}; run `unic report` for it again", None
    value, half = scores[SCORE] - theirs[SCORE], SURE * math.hypot(scores[ERROR], theirs[ERROR])
    return "", Difference(value, value - half, value + half, paired=False)


def _probes(scores: Mapping[str, float]) -> set[str]:
    return {match[1] for match in map(_PROBE.fullmatch, scores) if match}


def _scores(run_id: str) -> dict[str, float]:
    return dict(client().get_run(run_id).data.metrics)


def _newest(name: str, run_id: str) -> ModelVersion | None:
    """The student that this run registered last."""
    versions = client().search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    return max(versions, key=lambda version: int(version.version), default=None)


def _champion(name: str) -> ModelVersion | None:
    aliases = client().get_registered_model(name).aliases
    return client().get_model_version(name, aliases[CHAMPION]) if CHAMPION in aliases else None


def _find_version(name: str, run_id: str, sha256: str) -> ModelVersion | None:
    found = client().search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    return next((version for version in found if version.tags.get("unic.sha256") == sha256), None)


def _find_model(run_id: str, sha256: str) -> str | None:
    """A complete LoggedModel that an earlier attempt stored but did not register."""
    experiment = client().get_run(run_id).info.experiment_id
    found = client().search_logged_models([experiment], f"source_run_id = '{run_id}'")
    ready = (model for model in found if model.tags.get("unic.sha256") == sha256 and str(model.status) == "READY")
    return next((str(model.model_id) for model in ready), None)


def _upload(run_id: str, directory: Path, config: RunConfig, sha256: str) -> str:
    tags = {"unic.run": config.name, "unic.sha256": sha256, "format": "safetensors"}
    params = {"model": config.student.model, "image_size": str(config.student.image_size)}
    params["teachers"] = ", ".join(teacher.name for teacher in config.teachers)
    experiment = client().get_run(run_id).info.experiment_id
    model = client().create_logged_model(experiment, "student", run_id, tags, params, model_type="encoder")
    try:
        client().log_model_artifacts(model.model_id, str(directory))
    except BaseException:
        client().finalize_logged_model(model.model_id, "FAILED")
        raise
    client().finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _register(name: str, run_id: str, model_id: str, sha256: str, run_name: str) -> ModelVersion:
    try:
        client().create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {"unic.run": run_name, "unic.sha256": sha256, "unic.model_id": model_id}
    source = client().get_logged_model(model_id).artifact_location
    return client().create_model_version(name, source, run_id, tags, model_id=model_id)


def _log_scores(run_id: str, metrics: Mapping[str, float], model_id: str | None) -> None:
    now = int(time.time() * 1000)
    linked = [Metric(key, value, now, 0, model_id=model_id) for key, value in metrics.items()]
    if linked:
        client().log_batch(run_id, metrics=linked)


def _sha256(weights: Path) -> str:
    try:
        with weights.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnicError(f"cannot read {weights}: {error.strerror}; export the student first") from error
