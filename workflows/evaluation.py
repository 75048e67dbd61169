"""The evaluate step: the student, its teachers and a random student, probed by the same code on one data set."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from unic_core.config import ProbeConfig, RunConfig, TeacherConfig
from unic_core.data.dataset import ShardedDataset, default_cache
from unic_core.data.eval_loader import eval_batches, own_batches
from unic_core.data.parallel import Count, by_processes
from unic_core.distributed import agree_max, rank, together, world_size
from unic_core.errors import UnicError
from unic_core.evals.features import FeatureModel, FeatureSet
from unic_core.evals.probe import fit_probe
from unic_core.evals.results import ResultRow, Role, dump_rows, load_rows
from unic_core.evals.store import FeatureKey, FeatureStore
from unic_core.export import read_student
from unic_core.precision import DTYPES
from unic_core.provenance import versions
from unic_core.storage import Store, join, open_store
from unic_core.student import Student
from unic_core.teachers import load_teacher
from workflows.subjects import open_split, random_student, sentence, student_sha256

log = logging.getLogger(__name__)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """A model to probe."""

    name: str
    role: Role
    sha256: str
    model: FeatureModel
    image_size: int
    device: str


Load = Callable[[str], Subject]


@dataclass(frozen=True)
class ProbeSet:
    """One test set, opened."""

    config: ProbeConfig
    test: ShardedDataset


def evaluate_group(
    config: RunConfig, root: str, group: str, datasets: dict[str, str], run: str, say: Say
) -> list[ResultRow]:
    """Classifiers are trained on the data set `group` and scored on every test set that uses it.

    A model or test set that fails becomes rows with an error; the others go on.
    """
    probes = [probe for probe in config.evaluation.probes if probe.trained_on == group]
    rows: list[ResultRow] = []
    subjects = list(_subjects(config, run))
    try:
        train = open_split(config, root, datasets, group, probes[0].train_split)
    except Exception as error:
        log.exception("%s cannot be probed", group)
        return [row for name, role, _ in subjects for probe in probes for row in _failed(name, role, "", probe, error)]
    for name, role, load in subjects:
        sets: list[ProbeSet] = []
        for probe in probes:
            try:
                test = open_split(config, root, datasets, probe.dataset, probe.test_split)
                sets.append(ProbeSet(probe, test))
            except UnicError as error:
                rows += _failed(name, role, "", probe, error)
        try:
            rows += _probe(config, root, load, train, sets, say)
        except Exception as error:  # whatever it is, it belongs into the report, and the next model goes on
            log.exception("%s cannot be probed on %s", name, group)
            rows += [row for item in sets for row in _failed(name, role, "", item.config, error)]
    return rows


def _probe(
    config: RunConfig, root: str, load: Load, train: ShardedDataset, sets: Sequence[ProbeSet], say: Say
) -> list[ResultRow]:
    """All rows of one model: from the cache where it has them, else computed."""
    subject = load(_devices()[0])
    cache = open_store(join(root, "cache", "rows"))
    keys = {item.config.dataset: _cache_key(config, subject, train, item) for item in sets}
    rows: list[ResultRow] = []
    missing = []
    for item in sets:
        cached = _cached(cache, keys[item.config.dataset])
        if cached is None:
            missing.append(item)
        else:
            rows += [row.model_copy(update={"model": subject.name, "role": subject.role}) for row in cached]
    if not missing:
        say(f"{subject.name}: known from an earlier run")
        return rows
    say(f"{subject.name}: features of {len(train):,} training images of {train.name}")
    _extract_by_processes(config, root, subject, load, [train, *(item.test for item in missing)], _devices())
    features = _features(config, root, subject, train)
    fitted = fit_probe(features, config.evaluation, config.seed, _devices()[0], missing[0].config.classifier)
    for item in missing:
        new = []
        try:
            for score in fitted.score(_features(config, root, subject, item.test)):
                new.append(
                    ResultRow(
                        model=subject.name,
                        role=subject.role,
                        dataset=item.config.dataset,
                        group=item.config.group,
                        sha256=subject.sha256,
                        dataset_fingerprint=item.test.fingerprint,
                        test_split=item.config.test_split,
                        versions=versions(),
                        **asdict(score),
                    )
                )
        except Exception as error:  # the other test sets go on
            log.exception("%s cannot be probed on %s", subject.name, item.config.dataset)
            rows += _failed(subject.name, subject.role, subject.sha256, item.config, error)
            continue
        cache.put(keys[item.config.dataset], dump_rows(new).encode())
        rows += new
        scores = ", ".join(f"{row.protocol} {row.top1:.1%}" for row in new)
        say(f"{subject.name} on {item.config.dataset}: {scores}")
    return rows


def _features(config: RunConfig, root: str, subject: Subject, dataset: ShardedDataset) -> FeatureSet:
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
    return store.compute(key, labels, subject.model, batches, subject.device, first=first)


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


def _subjects(config: RunConfig, run: str) -> Iterator[tuple[str, Role, Load]]:
    """Name, role and a function that loads the model on a device; one is in memory at a time."""
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
    return Subject(name, role, student_sha256(student), student.features, student.image_size, device)


def _teacher(config: TeacherConfig, dtype: torch.dtype, device: str) -> Subject:
    teacher = load_teacher(config, None, device, dtype)
    return Subject(teacher.name, "teacher", teacher.sha256, teacher, teacher.spec.image_size, device)


def _cache_key(config: RunConfig, subject: Subject, train: ShardedDataset, item: ProbeSet) -> str:
    """What a result depends on; anything else about the run may differ."""
    free = {"probes", "random_student", "batch", "segmentation", "depth", "zeroshot"}
    evaluation = config.evaluation.model_dump(mode="json", exclude=free) | {"classifier": item.config.classifier}
    parts = [subject.sha256, subject.image_size, train.fingerprint, item.config.train_split, item.test.fingerprint,
             item.config.test_split, item.config.dataset, item.config.group, evaluation, config.seed]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest() + ".json"


def _cached(cache: Store, key: str) -> list[ResultRow] | None:
    try:
        return load_rows(cache.get(key), f"{cache.uri}/{key}")
    except FileNotFoundError:
        return None


def _failed(name: str, role: Role, sha256: str, probe: ProbeConfig, error: BaseException) -> list[ResultRow]:
    reason = sentence(error)
    return [
        ResultRow(
            model=name,
            role=role,
            dataset=probe.dataset,
            group=probe.group,
            protocol=protocol,
            sha256=sha256,
            error=reason,
        )
        for protocol in (probe.classifier, "knn")
    ]


# ---------------------------------------------------------------- several GPUs


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


def _extract_by_processes(
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


def _extract_share(share: _Share, count: Count) -> None:
    dist.init_process_group("gloo", init_method=f"file://{share.meeting}", rank=share.rank, world_size=share.world)
    try:
        subject = together(lambda: share.load(share.device))
        for dataset in share.sets:
            try:
                count(len(_features(share.config, share.root, subject, dataset)))
            except UnicError as error:  # the others go on; the caller meets it again and reports it
                log.warning("features of %s by several processes: %s", dataset.uri, error)
    finally:
        dist.destroy_process_group()


def _devices() -> list[str]:
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
