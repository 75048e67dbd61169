"""Segmentation, depth and zero-shot classification of the student, its teachers and a random student.

As with the probes, one data set is one unit of work (`segmentation-<data set>` and so on), what fails becomes a row
with an error, and rows are kept under everything they depend on.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from unic_core.config import DepthConfig, RunConfig, SegmentationConfig, TaskConfig, ZeroShotConfig
from unic_core.data.eval_loader import eval_batches
from unic_core.evals.depth import evaluate_depth
from unic_core.evals.results import ResultRow, Role, dump_rows, format_score, load_rows
from unic_core.evals.segmentation import evaluate_segmentation
from unic_core.evals.zeroshot import Embed, evaluate_zeroshot, read_texts
from unic_core.precision import DTYPES
from unic_core.provenance import versions
from unic_core.report.tasks import expected_models
from unic_core.storage import join, open_store
from unic_core.teacher_space import read_teacher_space
from unic_core.teachers import load_teacher
from unic_core.teachers.weights import tensors_sha256
from workflows.subjects import (
    DenseSubject,
    dense_subjects,
    device,
    open_split,
    sentence,
    student_sha256,
    take_failure,
    teacher_settings,
)

log = logging.getLogger(__name__)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """A loaded model on a task: what its row depends on beside the task's settings, and how the row is measured."""

    sha256: str
    fingerprint: str
    depends: list[Any]
    measure: Callable[[], dict[str, Any]]


def evaluate_task(
    config: RunConfig, root: str, name: str, datasets: dict[str, str], run: str, say: Say
) -> list[ResultRow]:
    """Rows of all models on one task; a model that fails becomes a row with an error, and the others go on.

    Raises:
        OutageError: S3 is away, which is no fault of a model.
    """
    task = config.evaluation.tasks[name]
    try:
        if isinstance(task, ZeroShotConfig):
            candidates = list(_zeroshot(config, task, root, datasets, run))
        else:
            candidates = list(_dense(config, task, root, datasets, run))
    except Exception as error:
        take_failure(log, error, "%s cannot be evaluated", name)
        return [_failed(task, model, role, error) for model, role in expected_models(task, config)]
    rows = []
    for model, role, load in candidates:
        try:
            candidate = load()
            row = _row(root, task, model, role, candidate)
            say(f"{model} on {task.label}: {task.kind} {format_score(row.metric, row.score)}")
        except Exception as error:  # whatever it is, it belongs into the report, and the next model goes on
            take_failure(log, error, "%s has no result of %s", model, name)
            row = _failed(task, model, role, error)
        rows.append(row)
    return rows


def _dense(
    config: RunConfig, task: SegmentationConfig | DepthConfig, root: str, datasets: dict[str, str], run: str
) -> Iterator[tuple[str, Role, Callable[[], Candidate]]]:
    train = open_split(config, root, datasets, task.dataset, task.train_split)
    test = open_split(config, root, datasets, task.dataset, task.test_split)

    def prepare(load: Callable[[], DenseSubject]) -> Candidate:
        subject = load()

        def measure() -> dict[str, Any]:
            workers = config.data.workers
            if isinstance(task, SegmentationConfig):
                score = evaluate_segmentation(subject.model, train, test, task, config.seed, workers)
            else:
                score = evaluate_depth(subject.model, train, test, task, config.seed, workers)
            return score.as_row()

        depends = [subject.settings, train.fingerprint, config.seed, config.evaluation.precision]
        return Candidate(subject.sha256, test.fingerprint, depends, measure)

    for name, role, load in dense_subjects(config, run):
        yield name, role, partial(prepare, load)


def _zeroshot(
    config: RunConfig, task: ZeroShotConfig, root: str, datasets: dict[str, str], run: str
) -> Iterator[tuple[str, Role, Callable[[], Candidate]]]:
    """The student by its projector, and the teacher itself; a random student has no projector."""
    test = open_split(config, root, datasets, task.dataset, task.test_split)
    config_of = {teacher.name: teacher for teacher in config.teachers}
    texts = read_texts(task.text, test.classes)
    precision = config.evaluation.precision

    def candidate(sha256: str, embed: Embed, pixels: int, depends: list[Any]) -> Candidate:
        def measure() -> dict[str, Any]:
            batches = eval_batches(test, pixels, config.evaluation.batch, config.data.workers)
            return asdict(evaluate_zeroshot(embed, texts, batches, config.seed, device(), precision))

        depends += [texts.fingerprint, pixels, config.seed, precision]
        return Candidate(sha256, test.fingerprint, depends, measure)

    def student() -> Candidate:
        space = read_teacher_space(run).to(device())
        sha256, state = student_sha256(space.student), tensors_sha256(space.state_dict())
        return candidate(
            sha256,
            lambda x: space(x, task.teacher),
            space.student.image_size,
            [state, space.student.config.model_dump(mode="json")],
        )

    def teacher() -> Candidate:
        found = load_teacher(config_of[task.teacher], None, device(), DTYPES[precision])
        return candidate(found.sha256, lambda x: found(x)["cls"], found.spec.image_size, [teacher_settings(found)])

    yield "student", "student", student
    yield task.teacher, "teacher", teacher


def _row(root: str, task: TaskConfig, name: str, role: Role, candidate: Candidate) -> ResultRow:
    """From the cache where it is there, else computed."""
    cache = open_store(join(root, "cache", "rows"))
    settings = task.model_dump(mode="json", exclude={"text"})
    parts = [task.kind, candidate.sha256, candidate.fingerprint, settings, *candidate.depends]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest() + ".json"
    try:
        (row,) = load_rows(cache.get(key), f"{cache.uri}/{key}")
        return row.model_copy(update={"model": name, "role": role})
    except FileNotFoundError:
        pass
    row = ResultRow(
        model=name,
        role=role,
        dataset=task.label,
        protocol=task.kind,
        metric=task.metric,
        sha256=candidate.sha256,
        dataset_fingerprint=candidate.fingerprint,
        versions=versions(),
        **candidate.measure(),
    )
    cache.put(key, dump_rows([row]).encode())
    return row


def _failed(task: TaskConfig, name: str, role: Role, error: BaseException) -> ResultRow:
    return ResultRow(
        model=name, role=role, dataset=task.label, protocol=task.kind, metric=task.metric, error=sentence(error)
    )
