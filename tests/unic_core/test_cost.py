from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from unic_core.config import LadderConfig, MLPConfig, StudentConfig, TransformerConfig
from unic_core.cost import CostRow, cost_table, read_cost, render_cost, store_cost
from unic_core.projectors import build_projectors
from unic_core.storage import LocalStore
from unic_core.student import Student
from unic_core.tokens import TokenKind

TARGETS: dict[str, dict[TokenKind, int]] = {"a": {"cls": 8, "patch": 8}, "b": {"patch": 4}}


@pytest.fixture
def student() -> Student:
    return Student(StudentConfig(image_size=32, patch_size=8, width=32, depth=2, heads=2))


def test_the_paper_s_run_costs_what_the_paper_s_run_costs() -> None:
    targets: dict[str, dict[TokenKind, int]] = {t: {"cls": 768, "patch": 768} for t in ("dino", "ibot", "deit", "dbot")}
    with torch.device("meta"):
        student = Student(StudentConfig())
        ladder = build_projectors(LadderConfig(), targets, student.width, student.depth, student.has_blocks)
        teacher = timm.create_model("vit_base_patch16_224", num_classes=0).requires_grad_(False)
    rows = {row.part: row for row in cost_table(student, ladder, dict.fromkeys(targets, teacher))}
    cls, patch = rows["projectors: cls"], rows["projectors: patch"]
    assert rows["student"].parameters == 85_799_424 - 768 - 2 * 768  # without mask token and final affine norm
    assert cls.parameters + patch.parameters == 141_723_648
    assert rows["student"].gflops_forward == pytest.approx(35.13, abs=0.01)
    assert rows["teacher: ibot"].gflops_forward == pytest.approx(35.13, abs=0.01)
    assert cls.gflops_forward == pytest.approx(0.14, abs=0.01)
    assert cls.gflops_forward + patch.gflops_forward == pytest.approx(27.89, abs=0.01)
    step = rows["training step"]
    assert step.gflops_forward == pytest.approx(203.5, abs=0.1)
    assert step.gflops_step == pytest.approx(330.1, rel=0.003)
    assert step.trainable == rows["student"].parameters + 141_723_648


def test_products_are_counted_as_by_hand(student: Student) -> None:
    mlp = build_projectors(MLPConfig(hidden=16), TARGETS, student.width, student.depth, student.has_blocks)
    rows = {row.part: row for row in cost_table(student, mlp, {})}
    assert rows["projectors: cls"].gflops_forward == pytest.approx(2 * (32 * 16 + 16 * 8) / 1e9)
    assert rows["projectors: patch"].gflops_forward == pytest.approx(2 * 16 * (32 * 32 + 16 * 8 + 16 * 4) / 1e9)
    assert rows["projectors: cls"].gflops_step == pytest.approx(3 * rows["projectors: cls"].gflops_forward)


def test_shared_parts_of_the_projectors_are_rows_too(student: Student) -> None:
    projectors = build_projectors(TransformerConfig(heads=4), TARGETS, 32, 2, True)
    rows = cost_table(student, projectors, {})
    parts = {row.part: row for row in rows}
    assert sum(r.parameters for p, r in parts.items() if p.startswith("projectors")) == sum(
        p.numel() for p in projectors.parameters()
    )
    assert parts["projectors: blocks"].gflops_forward > 10 * parts["projectors: patch"].gflops_forward > 0


def test_the_modules_stay_as_they_were(student: Student) -> None:
    student.train()
    student.encoder.norm.eval()
    teacher = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4)).requires_grad_(False)
    before = {n: t.clone() for n, t in [*student.state_dict().items(), *teacher.state_dict().items()]}
    student.compile_blocks()
    rows = cost_table(student, build_projectors(MLPConfig(hidden=16), TARGETS, 32, 2, True), {"t": teacher})
    assert student.training
    assert student.encoder.blocks[0].training
    assert not student.encoder.norm.training
    after = {**student.state_dict(), **teacher.state_dict()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert rows[-2].part == "teacher: t"
    assert rows[-2].trainable == 0
    assert rows[-2].gflops_forward == rows[-2].gflops_step > 0


def test_backbones_without_blocks_have_a_cost(student: Student) -> None:
    convnext = Student(StudentConfig(model="convnext_atto", image_size=32))
    rows = cost_table(convnext, build_projectors(MLPConfig(hidden=16), TARGETS, convnext.width, 1, False), {})
    assert rows[0].gflops_forward > 0
    assert rows[-1].gflops_step == pytest.approx(sum(row.gflops_step for row in rows[:-1]))


def test_the_table_is_aligned_plain_text(student: Student) -> None:
    rows = cost_table(student, build_projectors(MLPConfig(hidden=16), TARGETS, 32, 2, True), {})
    lines = render_cost(rows).splitlines()
    assert len(lines) == len(rows) + 1
    assert len({len(line) for line in lines}) == 1
    assert lines[-1].startswith("training step")
    assert lines[-1].endswith("100.0%")


def test_rows_are_kept_beside_the_run(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    assert read_cost(store) == []
    rows = [CostRow("student", 5, 4, 1.5, 4.5), CostRow("training step", 5, 4, 1.5, 4.5)]
    store_cost(rows, store)
    assert read_cost(store) == rows
