"""The probe in training sees what the evaluation sees, and leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from unic_core.config import StudentConfig
from unic_core.errors import UnicError
from unic_core.evals.in_training import InTrainingKnn
from unic_core.student import Student

CONFIG = StudentConfig(
    model="vit_tiny_patch16_224", image_size=16, patch_size=8, width=16, depth=2, heads=2, drop_path=0.5
)


def colors(n: int, labeled: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
    """Images of one of three plain colors; the color is the label."""
    for start in range(0, n, 4):
        labels = torch.arange(start, start + 4) % 3
        images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
        images[torch.arange(4), labels] = 200
        yield images, labels if labeled else torch.full_like(labels, -1)


def test_plain_colors_are_told_apart_and_training_goes_on_untouched() -> None:
    student = Student(CONFIG).train()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    state = torch.random.get_rng_state()
    scores = InTrainingKnn(lambda: colors(24), lambda: colors(12), (1, 3), 0.07)(student)
    assert scores == {"knn/top1_k1": 1.0, "knn/top1_k3": 1.0}
    assert student.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in student.state_dict().items())
    assert all(parameter.grad is None for parameter in student.parameters())


def test_images_without_labels_are_refused_and_the_mode_is_restored() -> None:
    student = Student(CONFIG).train()
    with pytest.raises(UnicError, match="kNN in training needs labels"):
        InTrainingKnn(lambda: colors(8, labeled=False), lambda: colors(4), (1,), 0.07)(student)
    assert student.training
