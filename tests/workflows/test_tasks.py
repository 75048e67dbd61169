"""Segmentation, depth and zero-shot classification of all models, on a local directory."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.unic_core.evals.scenes import color_scenes
from unic_core.checkpoint import snapshot, write_checkpoint
from unic_core.config import RunConfig, load_config
from unic_core.data.prepare import prepare_dataset
from unic_core.errors import OutageError, UnicError
from unic_core.evals.results import ResultRow
from unic_core.export import save_student
from unic_core.report import build_report
from unic_core.report.compare import compare_runs, comparison_page
from unic_core.storage import open_store
from unic_core.task import DistillationModel, build_task
from workflows import steps
from workflows.request import choose_datasets
from workflows.subjects import take_failure
from workflows.tasks import evaluate_task

MODELS = ("student", "random student", "lite0")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def config(root: Path, tmp_path: Path) -> RunConfig:
    """The smoke run with one task of every kind, and a second segmentation on a set that isn't there."""
    save_file({"text": torch.eye(10, 1280)}, tmp_path / "text.safetensors")
    sizes = "steps: 3, batch: 2"
    segmentation = f"{{dataset: masks, {sizes}, crop: 32, stride: 21, short_side: 32}}"
    return load_config(
        "smoke",
        [
            "datasets.0.limit={train: 64, test: 30}",
            f"evaluation.segmentation=[{segmentation}, {{dataset: nowhere}}]",
            f"evaluation.depth=[{{dataset: depths, {sizes}, crop: [32, 32], border: null, test_area: null}}]",
            f"evaluation.zeroshot=[{{dataset: digits, teacher: lite0, text: {tmp_path}/text.safetensors}}]",
        ],
    )


@pytest.fixture
def datasets(config: RunConfig, root: Path) -> dict[str, str]:
    found = {d.name: prepare_dataset(d, str(root)) for d in config.datasets}
    return found | {"masks": color_scenes(root / "m", "mask"), "depths": color_scenes(root / "d", "depth")}


@pytest.fixture
def run(config: RunConfig, tmp_path: Path) -> str:
    """A run with a student and a checkpoint, not trained."""
    task = build_task(config)
    assert isinstance(task.model, DistillationModel)
    store = open_store(str(tmp_path / "run"))
    tensors = snapshot(task.model, torch.optim.SGD(task.model.parameters()), task.standardizer)
    write_checkpoint(store, 1, tensors, {"config": config.model_dump(mode="json")})
    save_student(task.model.student, config, store.child("student"), [], license="MIT")
    return str(tmp_path / "run")


def test_all_tasks_of_all_models(config: RunConfig, datasets: dict[str, str], run: str, root: Path) -> None:
    assert steps.probe_groups(config) == [
        "digits", "segmentation-masks", "segmentation-nowhere", "depth-depths", "zeroshot-digits",
    ]  # fmt: skip

    def evaluate(name: str) -> list[ResultRow]:
        return evaluate_task(config, str(root), name, datasets, run, lambda _: None)

    rows = {name: evaluate(name) for name in config.evaluation.tasks}
    assert [row.model for row in rows["segmentation-masks"]] == list(MODELS)
    assert [(row.metric, row.error) for row in rows["segmentation-masks"]] == [("miou", None)] * 3
    assert all(0 <= (row.ci_low or 0) <= (row.value or 0) <= (row.ci_high or 0) for row in rows["segmentation-masks"])
    assert {"pixel_accuracy", "iou/red"} <= set(rows["segmentation-masks"][0].details)
    assert [(row.metric, row.error) for row in rows["depth-depths"]] == [("rmse", None)] * 3
    assert all("abs_rel" in row.details and (row.value or 0) > 0 for row in rows["depth-depths"])
    assert [(row.model, row.metric, row.error) for row in rows["zeroshot-digits"]] == [
        ("student", "top1", None), ("lite0", "top1", None),
    ]  # fmt: skip
    failed = rows["segmentation-nowhere"]
    assert {row.model for row in failed} == set(MODELS)
    assert all("not prepared" in (row.error or "") for row in failed)
    assert (
        len({row.sha256 for found in rows.values() for row in found if row.model == "student" and not row.error}) == 1
    )

    for tar in root.rglob("*.tar"):
        tar.unlink()  # a repeat reads no image
    assert {name: evaluate(name) for name in config.evaluation.tasks} == rows


def test_a_set_that_nobody_prepares_is_found_before_the_training(config: RunConfig) -> None:
    with pytest.raises(UnicError, match=r"evaluation\.segmentation names 'masks', which is not in datasets"):
        steps.check(config)


def test_a_model_that_fails_fails_alone(config: RunConfig, datasets: dict[str, str], run: str, root: Path) -> None:
    cls_only = config.teachers[0].model_copy(update={"tokens": ("cls",)})
    changed = config.model_copy(update={"teachers": (cls_only,)})
    rows = evaluate_task(changed, str(root), "segmentation-masks", datasets, run, lambda _: None)
    assert [row.error is None for row in rows] == [True, True, False]
    assert rows[2].error == "lite0 has no patch tokens, so it can't do dense tasks"


def test_s3_that_is_away_is_no_fault_of_a_model(
    config: RunConfig, datasets: dict[str, str], run: str, absent_s3: None
) -> None:
    """A row would say so for ever; whoever called may wait and ask again."""
    with pytest.raises(OutageError, match="cannot be reached"):
        evaluate_task(config, "s3://bucket/unic", "zeroshot-digits", datasets, run, lambda _: None)


def test_a_run_without_probes_is_evaluated_reported_and_compared(
    config: RunConfig, datasets: dict[str, str], run: str, root: Path
) -> None:
    evaluation = config.evaluation.model_copy(update={"probes": (), "segmentation": config.evaluation.segmentation[:1]})
    alone = config.model_copy(update={"evaluation": evaluation})
    assert choose_datasets(alone, ()) == ["segmentation-masks", "depth-depths", "zeroshot-digits"]
    prepared = evaluation.model_copy(update={"segmentation": (), "depth": ()})
    steps.check(config.model_copy(update={"evaluation": prepared}))
    rows = evaluate_task(alone, str(root), "segmentation-masks", datasets, run, lambda _: None)
    report = build_report(rows, alone)
    assert 0 <= report.metrics["segmentation/masks/miou"] <= 1
    assert "masks" in report.html
    assert "masks" in report.markdown
    assert "winner" not in "".join(report.tags)
    assert "masks" in comparison_page(compare_runs({"one": rows, "two": rows}))


def test_our_own_errors_are_logged_as_a_line_and_others_with_their_traceback(caplog: pytest.LogCaptureFixture) -> None:
    for error, text in ((UnicError("no such set"), "no such set"), (KeyError("x"), "KeyError: 'x'")):
        take_failure(logging.getLogger("test"), error, "%s cannot be probed on %s", "student", "cars")
        record = caplog.records[-1]
        assert record.getMessage() == f"student cannot be probed on cars: {text}"
        assert bool(record.exc_info) == (not isinstance(error, UnicError))
