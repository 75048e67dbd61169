"""Predictions in a teacher's own space: they are the projector's, with the standardization undone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from unic_core.checkpoint import snapshot, write_checkpoint
from unic_core.config import RunConfig, load_config
from unic_core.errors import UnicError
from unic_core.export import save_student
from unic_core.projectors.build import saved_widths
from unic_core.storage import open_store
from unic_core.student import Student
from unic_core.task import DistillationModel, DistillationTask, build_task
from unic_core.teacher_space import read_teacher_space


@pytest.fixture(params=["ladder", "transformer"])
def config(request: pytest.FixtureRequest) -> RunConfig:
    change = [] if request.param == "ladder" else ["projector={kind: transformer, heads: 2}"]
    return load_config("smoke", change)


def trained(config: RunConfig) -> DistillationTask:
    """With statistics that are not those of the start."""
    task = build_task(config)
    for buffer in task.standardizer.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2)
    return task


def save(task: DistillationTask, config: RunConfig, run: Path) -> None:
    store = open_store(str(run))
    assert isinstance(task.model, DistillationModel)
    tensors = snapshot(task.model, torch.optim.SGD(task.model.parameters()), task.standardizer)
    write_checkpoint(store, 1, tensors, {"config": config.model_dump(mode="json")}, {})
    save_student(task.model.student, config, store.child("student"), [], license="MIT")


def test_the_prediction_is_the_projectors_times_sigma_plus_mu(config: RunConfig, tmp_path: Path) -> None:
    task = trained(config)
    save(task, config, tmp_path)
    images = torch.rand(2, 3, 32, 32)
    model = task.model.eval()
    with torch.no_grad():
        raw: Tensor = model.projectors(model.student(images))["lite0"]["cls"]  # type: ignore[operator]
    statistics = task.standardizer.statistics("lite0", "cls")
    expected = raw * (statistics.std + 0.01) + statistics.mean  # type: ignore[operator]
    space = read_teacher_space(str(tmp_path))
    torch.testing.assert_close(space(images, "lite0"), expected)
    assert space(images, "lite0", "patch").shape == (2, 16, 1280)
    # undoing and doing again gives what training compares
    again = task.standardizer.normalize({"lite0": {"cls": expected}})["lite0"]["cls"]
    torch.testing.assert_close(again, raw, rtol=1e-4, atol=1e-5)
    with pytest.raises(UnicError, match="predicts no cls tokens of other"):
        space(images, "other")


def test_widths_are_read_from_what_was_saved(config: RunConfig) -> None:
    state = trained(config).model.projectors.state_dict()  # type: ignore[union-attr, operator]
    assert saved_widths(state, "lite0") == {"cls": 1280, "patch": 1280}  # type: ignore[arg-type]
    assert saved_widths(state, "lite") == {}  # type: ignore[arg-type]


def test_a_run_without_checkpoint_says_so(tmp_path: Path) -> None:
    config = load_config("smoke")
    save_student(Student(config.student), config, open_store(str(tmp_path)).child("student"), [], license="MIT")
    with pytest.raises(UnicError, match="has no checkpoint"):
        read_teacher_space(str(tmp_path))
