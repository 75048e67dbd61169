"""The evaluation of one data set with all models, on a local directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from unic_core.config import RunConfig, load_config
from unic_core.data.dataset import ShardedDataset
from unic_core.data.prepare import prepare_dataset
from unic_core.errors import OutageError, UnicError
from unic_core.evals.results import ResultRow
from unic_core.export import save_student
from unic_core.report import build_report
from unic_core.storage import open_store
from unic_core.student import Student
from unic_core.teachers import resolve
from unic_core.teachers.weights import fetch
from workflows import evaluation, features, steps
from workflows.evaluation import evaluate_group

if TYPE_CHECKING:
    from tests.workflows.conftest import S3

PROBES = "[{dataset: digits}, {dataset: /nowhere/images, train_on: digits, group: shift}]"


@pytest.fixture
def config() -> RunConfig:
    return load_config("smoke", [f"evaluation.probes={PROBES}", "datasets.0.limit={train: 200, test: 100}"])


def test_a_broken_set_fails_alone_and_a_repeat_computes_only_what_is_missing(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, run = str(tmp_path / "root"), str(tmp_path / "run")
    datasets = {d.name: prepare_dataset(d, root) for d in config.datasets}
    save_student(Student(config.student), config, open_store(run).child("student"), [], license="MIT")

    def evaluate() -> tuple[list[ResultRow], list[str]]:
        lines: list[str] = []
        return evaluate_group(config, root, "digits", datasets, run, lines.append), lines

    rows, _ = evaluate()
    good = [row for row in rows if row.dataset == "digits"]
    names = ("student", "random student", "lite0")
    assert {(row.model, row.protocol) for row in good} == {(m, p) for m in names for p in ("logreg", "knn")}
    assert all(row.error is None for row in good)
    broken = [row for row in rows if row.dataset == "nowhere-images"]
    assert len(broken) == 6
    assert all("no finished data set at /nowhere/images" in (row.error or "") for row in broken)

    def refuse(*_: object) -> None:
        raise AssertionError("its features are stored: the teacher is not needed")

    monkeypatch.setattr(features, "load_teacher", refuse)
    again, lines = evaluate()
    assert lines == [f"{name}: known from an earlier run" for name in names]
    assert [row for row in again if row.dataset == "digits"] == good
    for path in (tmp_path / "root" / "cache" / "rows").iterdir():
        path.unlink()
    assert len(list((tmp_path / "root" / "cache" / "features").rglob("*.npy"))) == 6  # three models, two splits
    for tar in (tmp_path / "root" / "datasets").rglob("*.tar"):
        tar.unlink()  # images are not needed any more: only features are read
    fresh, _ = evaluate()
    assert [row.top1 for row in fresh if row.dataset == "digits"] == [row.top1 for row in good]


def test_replaced_weights_of_a_teacher_are_noticed(config: RunConfig, tmp_path: Path) -> None:
    """Their features would be kept under the checksum of the old ones."""
    source = fetch(resolve(config.teachers[0]).source)
    weights = tmp_path / source.name
    weights.write_bytes(source.read_bytes())
    teacher = config.teachers[0].model_copy(update={"weights": str(weights)})
    config = config.model_copy(update={"teachers": (teacher,)})
    subject = next(load("cpu") for name, _, load in features.subjects(config, "") if name == "lite0")
    state = torch.load(source, weights_only=True)
    torch.save({key: value + 1 for key, value in state.items()}, weights)
    with pytest.raises(UnicError, match="weights of teacher lite0 were replaced"):
        subject.load()


def test_a_set_named_by_its_uri_has_a_short_name(config: RunConfig, tmp_path: Path) -> None:
    """The whole address would be no name of a metric in MLflow, and no file."""
    root, run = str(tmp_path / "root"), str(tmp_path / "run")
    uri = prepare_dataset(config.datasets[0], root)
    save_student(Student(config.student), config, open_store(run).child("student"), [], license="MIT")
    config = load_config("smoke", [f"evaluation.probes=[{{dataset: {uri}}}]", "evaluation.random_student=false"])
    (group,) = steps.probe_groups(config)
    assert group == "-".join(Path(uri).parts[-2:])
    rows = evaluate_group(config, root, group, {}, run, lambda _: None)
    assert {(row.dataset, row.error) for row in rows} == {(group, None)}
    assert f"probe/{group}/top1" in build_report(rows, config).metrics


@pytest.mark.slow
def test_another_machine_reads_the_features_from_s3(config: RunConfig, s3: S3, tmp_path: Path) -> None:
    root, run = "s3://unic/features", str(tmp_path / "run")
    datasets = {d.name: prepare_dataset(d, root) for d in config.datasets}
    save_student(Student(config.student), config, open_store(run).child("student"), [], license="MIT")

    def on(machine: str) -> list[ResultRow]:
        data = config.data.model_copy(update={"cache": str(tmp_path / machine / "shards")})
        rows = evaluate_group(config.model_copy(update={"data": data}), root, "digits", datasets, run, lambda _: None)
        return [row for row in rows if row.dataset == "digits"]

    first = on("one")
    assert all(row.error is None for row in first)
    store = open_store(root)
    store.delete([*store.list("cache/rows/"), *(key for key in store.list("datasets/") if key.endswith(".tar"))])
    again = on("two")  # without images: whatever asked for a model's features would fail
    assert [(row.model, row.protocol, row.top1) for row in again] == [(r.model, r.protocol, r.top1) for r in first]
    read = {path.name for path in (tmp_path / "two" / "features").rglob("*.npy")}
    assert len(read) == 2
    assert len(list((tmp_path / "two" / "features").rglob("*.npy"))) == len(store.list("cache/features/")) == 6


def test_s3_that_is_away_is_no_fault_of_a_model(config: RunConfig, tmp_path: Path, absent_s3: None) -> None:
    """A row would say so for ever; whoever called may wait and ask again."""
    datasets = {d.name: prepare_dataset(d, str(tmp_path)) for d in config.datasets}
    with pytest.raises(OutageError, match="cannot be reached"):
        evaluate_group(config, str(tmp_path), "digits", datasets, "s3://bucket/unic/runs/x", lambda _: None)


@pytest.mark.slow
def test_two_processes_write_the_features_of_one(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit by bit, and everything after them; the second time no process is started."""
    one, two, run = str(tmp_path / "one"), str(tmp_path / "two"), str(tmp_path / "run")
    small = config.evaluation.model_copy(update={"batch": 24, "probes": config.evaluation.probes[:1]})
    config = config.model_copy(update={"evaluation": small})
    datasets = {d.name: prepare_dataset(d, one) for d in config.datasets}
    save_student(Student(config.student), config, open_store(run).child("student"), [], license="MIT")
    alone = evaluate_group(config, one, "digits", datasets, run, lambda _: None)

    monkeypatch.setattr(evaluation, "devices", lambda: ["cpu", "cpu"])
    together = evaluate_group(config, two, "digits", datasets, run, lambda _: None)
    assert [(row.model, row.protocol, row.top1) for row in together] == [(r.model, r.protocol, r.top1) for r in alone]
    stores = open_store(f"{one}/cache/features"), open_store(f"{two}/cache/features")
    assert list(stores[0].list()) == list(stores[1].list())
    assert len(stores[0].list()) == 6
    for key in stores[0].list():
        assert stores[0].get(key) == stores[1].get(key)

    def refuse(*_: object) -> None:
        raise AssertionError("there was nothing to compute")

    monkeypatch.setattr(features, "by_processes", refuse)
    for row in Path(two, "cache", "rows").iterdir():
        row.unlink()
    again = evaluate_group(config, two, "digits", datasets, run, lambda _: None)
    assert [row.top1 for row in again] == [row.top1 for row in alone]
    assert len(ShardedDataset(datasets["digits"], "train")) % 24 != 0  # the last batch was a short one
