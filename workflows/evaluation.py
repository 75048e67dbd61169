"""The evaluate step: the student, its teachers and a random student, probed by the same code on one data set."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from unic_core.config import ProbeConfig, RunConfig
from unic_core.data.dataset import ShardedDataset
from unic_core.errors import UnicError
from unic_core.evals.probe import fit_probe
from unic_core.evals.results import ResultRow, Role, dump_rows, load_rows
from unic_core.provenance import versions
from unic_core.storage import Store, join, open_store
from workflows.features import Load, Subject, devices, extract_by_processes, features_of, subjects
from workflows.subjects import open_split, sentence, take_failure

log = logging.getLogger(__name__)

Say = Callable[[str], None]

SOLVER = 3  # raised when the same features give other numbers: results of older code are computed again


@dataclass(frozen=True)
class ProbeSet:
    """One test set, opened."""

    config: ProbeConfig
    test: ShardedDataset


def evaluate_group(
    config: RunConfig, root: str, group: str, datasets: dict[str, str], run: str, say: Say
) -> list[ResultRow]:
    """Classifiers are trained on the data set called `group` and scored on every test set that uses it.

    A model or test set that fails becomes rows with an error; the others go on.

    Raises:
        OutageError: S3 is away, which is no fault of a model; what is done is kept.
    """
    probes = [probe for probe in config.evaluation.probes if probe.fit == group]
    rows: list[ResultRow] = []
    models = list(subjects(config, run))
    try:
        train = open_split(config, root, datasets, probes[0].trained_on, probes[0].train_split)
    except Exception as error:
        take_failure(log, error, "%s cannot be probed", group)
        return [row for name, role, _ in models for probe in probes for row in _failed(name, role, "", probe, error)]
    for name, role, load in models:
        sets: list[ProbeSet] = []
        for probe in probes:
            try:
                test = open_split(config, root, datasets, probe.dataset, probe.test_split)
                sets.append(ProbeSet(probe, test))
            except UnicError as error:
                take_failure(log, error, "%s cannot be probed on %s", name, probe.label)
                rows += _failed(name, role, "", probe, error)
        try:
            rows += _probe(config, root, load, train, sets, say)
        except Exception as error:  # whatever it is, it belongs into the report, and the next model goes on
            take_failure(log, error, "%s cannot be probed on %s", name, group)
            rows += [row for item in sets for row in _failed(name, role, "", item.config, error)]
    return rows


def _probe(
    config: RunConfig, root: str, load: Load, train: ShardedDataset, sets: Sequence[ProbeSet], say: Say
) -> list[ResultRow]:
    """All rows of one model: from the cache where it has them, else computed."""
    subject = load(devices()[0])
    cache = open_store(join(root, "cache", "rows"))
    keys = {item.config.label: _cache_key(config, subject, train, item) for item in sets}
    rows: list[ResultRow] = []
    missing = []
    for item in sets:
        cached = _cached(cache, keys[item.config.label])
        if cached is None:
            missing.append(item)
        else:
            rows += [row.model_copy(update={"model": subject.name, "role": subject.role}) for row in cached]
    if not missing:
        say(f"{subject.name}: known from an earlier run")
        return rows
    say(f"{subject.name}: features of {len(train):,} training images of {train.name}")
    extract_by_processes(config, root, subject, load, [train, *(item.test for item in missing)], devices())
    features = features_of(config, root, subject, train)
    fitted = fit_probe(features, config.evaluation, config.seed, devices()[0], missing[0].config.classifier)
    for item in missing:
        new = []
        try:
            for score in fitted.score(features_of(config, root, subject, item.test)):
                new.append(
                    ResultRow(
                        model=subject.name,
                        role=subject.role,
                        dataset=item.config.label,
                        group=item.config.group,
                        sha256=subject.sha256,
                        dataset_fingerprint=item.test.fingerprint,
                        test_split=item.config.test_split,
                        versions=versions(),
                        **asdict(score),
                    )
                )
        except Exception as error:  # the other test sets go on
            take_failure(log, error, "%s cannot be probed on %s", subject.name, item.config.label)
            rows += _failed(subject.name, subject.role, subject.sha256, item.config, error)
            continue
        cache.put(keys[item.config.label], dump_rows(new).encode())
        rows += new
        scores = ", ".join(f"{row.protocol} {row.top1:.1%}" for row in new)
        say(f"{subject.name} on {item.config.label}: {scores}")
    return rows


def _cache_key(config: RunConfig, subject: Subject, train: ShardedDataset, item: ProbeSet) -> str:
    """What a result depends on; anything else about the run may differ."""
    free = {"probes", "random_student", "batch", "segmentation", "depth", "zeroshot"}
    evaluation = config.evaluation.model_dump(mode="json", exclude=free) | {"classifier": item.config.classifier}
    images = [train.fingerprint, item.config.train_split, item.test.fingerprint, item.config.test_split]
    parts = [SOLVER, subject.sha256, subject.image_size, *images, item.config.label, item.config.group, evaluation]
    return hashlib.sha256(json.dumps([*parts, config.seed], sort_keys=True).encode()).hexdigest() + ".json"


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
            dataset=probe.label,
            group=probe.group,
            protocol=protocol,
            sha256=sha256,
            error=reason,
        )
        for protocol in (probe.classifier, "knn")
    ]
