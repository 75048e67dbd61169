"""The models that are evaluated, and the data sets they are evaluated on."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from unic_core.config import RunConfig, TeacherConfig
from unic_core.data.dataset import ShardedDataset
from unic_core.data.prepare import prepare_dataset
from unic_core.errors import OutageError, UnicError
from unic_core.evals.dense import DenseModel, Precision
from unic_core.evals.results import Role
from unic_core.export import read_student
from unic_core.precision import DTYPES
from unic_core.storage import join
from unic_core.student import Student
from unic_core.teachers import Teacher, load_teacher


@dataclass(frozen=True)
class DenseSubject:
    """A model for images of any size. settings: what its features depend on beside its weights."""

    name: str
    role: Role
    sha256: str
    model: DenseModel
    settings: dict[str, Any]


def dense_subjects(config: RunConfig, run: str) -> Iterator[tuple[str, Role, Callable[[], DenseSubject]]]:
    """Name, role and a function that loads the model; one is in memory at a time."""
    precision = config.evaluation.precision
    yield "student", "student", lambda: _student("student", read_student(join(run, "student")), precision)
    if config.evaluation.random_student:
        yield "random student", "random", lambda: _student("random student", random_student(config), precision)
    for teacher in config.teachers:
        yield teacher.name, "teacher", partial(_teacher, teacher, precision)


def _student(name: str, student: Student, precision: Precision) -> DenseSubject:
    student = student.to(device()).eval()
    model = DenseModel(name, student.features, student.stride, student.mean, precision)
    role: Role = "student" if name == "student" else "random"
    return DenseSubject(name, role, student_sha256(student), model, student.config.model_dump(mode="json"))


def _teacher(config: TeacherConfig, precision: Precision) -> DenseSubject:
    teacher = load_teacher(config, None, device(), DTYPES[precision], any_size=True)
    model = DenseModel(teacher.name, teacher, teacher.stride, teacher.mean)
    return DenseSubject(teacher.name, "teacher", teacher.sha256, model, teacher_settings(teacher))


def teacher_settings(teacher: Teacher) -> dict[str, Any]:
    """What its tokens depend on beside its weights."""
    return teacher.spec.model_dump(mode="json", include={"model", "mean", "std", "cls", "patch", "position"})


def student_sha256(student: Student) -> str:
    """Checksum of its weights."""
    digest = hashlib.sha256()
    for key, value in sorted(student.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def random_student(config: RunConfig) -> Student:
    """The student's architecture with random weights, always the same ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Student(config.student.model_copy(update={"pretrained": False}))


def open_split(config: RunConfig, root: str, datasets: dict[str, str], name: str, split: str) -> ShardedDataset:
    """One split of a prepared data set, by name or URI. What could not be prepared before is tried again.

    Raises:
        UnicError: there is no such data set, or it can't be prepared; says why.
    """
    uri = datasets.get(name, name)
    known = next((dataset for dataset in config.datasets if dataset.name == name), None)
    if name not in datasets and known is not None:
        uri = prepare_dataset(known, root)
    elif uri == name and "/" not in uri:
        raise UnicError(
            f"the evaluation names {name!r}, which is not prepared; add it to datasets or give the URI of a "
            "prepared data set"
        )
    return ShardedDataset(uri, split, Path(config.data.cache) if config.data.cache else None, config.data.cache_bytes)


def sentence(error: BaseException) -> str:
    """An error as the report shows it."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return text if isinstance(error, UnicError) else f"{type(error).__name__}: {text}"


def take_failure(log: logging.Logger, error: Exception, message: str, *names: str) -> None:
    """Log what becomes a row of the report: one line for what the user can mend, the traceback of anything else.

    Raises:
        OutageError: the error itself, when S3 is away. That is no fault of a model; whoever called may wait.
    """
    if isinstance(error, OutageError):
        raise error
    log.error(f"{message}: %s", *names, sentence(error), exc_info=None if isinstance(error, UnicError) else error)


def device() -> str:
    """Where models run."""
    return "cuda" if torch.cuda.is_available() else "cpu"
