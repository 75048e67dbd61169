"""The models that are probed, and their features: stored ones, or taken now, by one process on each GPU."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from unic_core.config import RunConfig, TeacherConfig
from unic_core.data.dataset import ShardedDataset, default_cache
from unic_core.data.eval_loader import eval_batches, own_batches
from unic_core.data.parallel import Count, by_processes
from unic_core.distributed import agree_max, rank, together, world_size
from unic_core.errors import UnicError
from unic_core.evals.features import FeatureModel, FeatureSet
from unic_core.evals.results import Role
from unic_core.evals.store import FeatureKey, FeatureStore
from unic_core.export import read_student
from unic_core.precision import DTYPES
from unic_core.storage import join
from unic_core.student import Student
from unic_core.teachers import load_teacher, resolve, weights_sha256
from workflows.subjects import random_student, student_sha256

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """A model to probe. load: gives it, frozen, on its device; a teacher in a file is not built before."""

    name: str
    role: Role
    sha256: str
    image_size: int
    device: str
    load: Callable[[], FeatureModel] = field(repr=False)


Load = Callable[[str], Subject]


def subjects(config: RunConfig, run: str) -> Iterator[tuple[str, Role, Load]]:
    """Name, role and a function that finds the model, for a device; one is in memory at a time."""
    yield "student", "student", partial(_student, run)
    if config.evaluation.random_student:
        yield "random student", "random", partial(_random_student, config)
    for teacher in config.teachers:
        yield teacher.name, "teacher", partial(_teacher, teacher, DTYPES[config.evaluation.precision])


def _student(run: str, device: str) -> Subject:
    return _frozen("student", "student", read_student(join(run, "student")), device)


def _random_student(config: RunConfig, device: str) -> Subject:
    return _frozen("random student", "random", random_student(config), device)


def _frozen(name: str, role: Role, student: Student, device: str) -> Subject:
    student = student.to(device).eval()
    return Subject(name, role, student_sha256(student), student.image_size, device, lambda: student.features)


def _teacher(config: TeacherConfig, dtype: torch.dtype, device: str) -> Subject:
    built = cache(lambda: load_teacher(config, None, device, dtype))
    sha256 = weights_sha256(config) or built().sha256

    def load() -> FeatureModel:
        if built().sha256 != sha256:
            raise UnicError(f"the weights of teacher {config.name} were replaced meanwhile; start again")
        return built()

    return Subject(config.name, "teacher", sha256, resolve(config).image_size, device, load)


def features_of(config: RunConfig, root: str, subject: Subject, dataset: ShardedDataset) -> FeatureSet:
    """From the store, where an earlier probe or run left them; else computed and stored.

    In a process group each process takes the features of its own part of the images.
    """
    store, key, labels = _stored(config, root, subject, dataset)
    found = together(lambda: store.load(key, labels))
    if not agree_max(int(found is None)) and found is not None:
        return found
    own, size, batch = (rank(), world_size()), subject.image_size, config.evaluation.batch
    batches = eval_batches(dataset, size, batch, config.data.workers, *own)
    first = own_batches(len(dataset), batch, *own).start * batch
    model = together(subject.load)
    return store.compute(key, labels, model, batches, subject.device, first=first)


def devices() -> list[str]:
    """The GPUs of this machine, or its CPU."""
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]


def extract_by_processes(
    config: RunConfig, root: str, subject: Subject, load: Load, sets: Sequence[ShardedDataset], devices: Sequence[str]
) -> None:
    """Where there are several devices, a process on each takes its part of the features that are missing."""
    stored = ((item, *_stored(config, root, subject, item)) for item in sets)
    missing = [item for item, store, key, labels in stored if len(devices) > 1 and store.load(key, labels) is None]
    if not missing:
        return
    with tempfile.TemporaryDirectory(prefix="unic-features-") as scratch:
        shares = [_Share(config, root, load, missing, device, i, len(devices), f"{scratch}/meeting")
                  for i, device in enumerate(devices)]  # fmt: skip
        for _ in by_processes(_extract_share, shares, len(devices), lambda _: None):
            pass


def _stored(
    config: RunConfig, root: str, subject: Subject, dataset: ShardedDataset
) -> tuple[FeatureStore, FeatureKey, Tensor]:
    """Where the features of a data set are kept, and its labels."""
    evaluation = config.evaluation
    local = Path(config.data.cache) if config.data.cache else default_cache()
    store = FeatureStore(join(root, "cache", "features"), local.parent / "features")
    key = FeatureKey(subject.sha256, dataset.fingerprint, dataset.split, subject.image_size, evaluation.token,
                     evaluation.precision)  # fmt: skip
    return store, key, torch.from_numpy(dataset.labels.copy())


@dataclass(frozen=True)
class _Share:
    """What one of several processes is asked for: features of all `sets`, each process its part of the images."""

    config: RunConfig
    root: str
    load: Load
    sets: Sequence[ShardedDataset]
    device: str
    rank: int
    world: int
    meeting: str  # file by which the processes find each other


def _extract_share(share: _Share, count: Count) -> None:
    dist.init_process_group("gloo", init_method=f"file://{share.meeting}", rank=share.rank, world_size=share.world)
    try:
        subject = together(lambda: share.load(share.device))
        for dataset in share.sets:
            try:
                count(len(features_of(share.config, share.root, subject, dataset)))
            except UnicError as error:  # the others go on; the caller meets it again and reports it
                log.warning("features of %s by several processes: %s", dataset.uri, error)
    finally:
        dist.destroy_process_group()
